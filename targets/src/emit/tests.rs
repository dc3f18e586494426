//! Weights that come quantized are packed as if this compiler had quantized them.

use super::*;
use dlx_ir::parse;
use dlx_runtime::cpu::{PackedWeight, unpack_row};

const ROWS: usize = 40;
const COLUMNS: usize = 200;

/// One weight in two forms: numbers, and the codes that this compiler makes of them, with scales a little off f16 if asked.
struct Both {
    format: QuantFormat,
    numbers: Vec<f32>,
    factor: f32,
}

impl Both {
    fn new(format: &str, factor: f32) -> Self {
        let numbers = (0..ROWS * COLUMNS).map(|i| ((i * 37 + i / 7) % 101) as f32 * 0.013 - 0.6).collect();
        Both { format: format.parse().unwrap(), numbers, factor }
    }

    fn quantized(&self, row: usize) -> QuantizedRow {
        let mut q = QuantizedRow::zeroed(self.format, COLUMNS);
        assert!(quantize_row(self.format, &self.numbers[row * COLUMNS..][..COLUMNS], &mut q));
        q
    }
}

impl WeightSource for Both {
    fn read_rows(&self, _: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        out.copy_from_slice(&self.numbers[rows.start * COLUMNS..rows.end * COLUMNS]);
        Ok(())
    }

    fn read_codes(&self, _: &str, format: QuantFormat, rows: Range<usize>, out: CodeRows<'_>) -> Result<(), Error> {
        assert_eq!(format, self.format);
        let groups = format.groups(COLUMNS);
        for (i, row) in rows.enumerate() {
            let q = self.quantized(row);
            out.codes[i * COLUMNS..][..COLUMNS].copy_from_slice(&q.codes);
            for g in 0..groups {
                out.scales[i * groups + g] = q.scales[g].to_f32() * self.factor;
                if format.has_min() {
                    out.mins[i * groups + g] = q.mins[g].to_f32() * self.factor;
                }
            }
        }
        Ok(())
    }

    fn read_bytes(&self, name: &str, _: Range<usize>, _: &mut [u8]) -> Result<(), Error> {
        Err(Error::new(name, "has no bytes"))
    }

    fn release_rows(&self, _: &str, _: Range<usize>) {}
}

/// The bytes of the weight of a module, and what became of it if it came as codes.
fn emitted(weights: &str, source: &dyn WeightSource) -> Result<(Vec<u8>, Option<Recoded>), Error> {
    let text = format!(
        "module @m {{ {weights} graph @head(%x: f32[4, {COLUMNS}]) -> (f32[4, {ROWS}]) {{
            %y = linear %x, @p: f32[4, {ROWS}]
            return %y
        }} }}"
    );
    let module = VerifiedModule::new(parse(&text).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ArtifactWriter::create(&dir.path().join("m.dlxa")).unwrap();
    let placed = place(&module, &[], &mut |len| writer.reserve(len));
    let emission = placed.and_then(|p| emit(&module, p, source, &writer, &AtomicBool::new(false), &|_, _| {}))?;
    let (_, weight) = emission.module.weights.iter().next().unwrap();
    let WeightDef::Stored { offset, bytes, .. } = weight.def else { panic!("{:?}", weight.def) };
    let (file, weights) = writer.map_weights().unwrap();
    let bytes = file.bytes()[weights][offset as usize..][..bytes as usize].to_vec();
    Ok((bytes, emission.recoded.into_iter().next()))
}

fn kept(format: QuantFormat) -> String {
    let ty = format!("{format}[{ROWS}, {COLUMNS}]");
    format!("weight @w: {ty} weight @p: {ty} @n16 = pack @w {{layout=n16}}")
}

const FORMATS: &[&str] =
    &["q4g32", "q4g64", "q4g128", "q4g32m", "q4g128m", "q8", "q8m", "q8g32", "q8g32m", "q8g64", "q8g128m", "l16"];

#[test]
fn weights_that_come_quantized_are_packed_like_our_own() {
    for format in FORMATS {
        let both = Both::new(format, 1.0);
        let ty = format!("{format}[{ROWS}, {COLUMNS}]");
        let ours = format!(
            "weight @w: f32[{ROWS}, {COLUMNS}] weight @q: {ty} = quantize @w {{to={format}}}
             weight @p: {ty} @n16 = pack @q {{layout=n16}}"
        );
        let (ours, told) = emitted(&ours, &both).unwrap();
        assert!(ours.iter().any(|b| *b != 0) && told.is_none());
        let (bytes, told) = emitted(&kept(both.format), &both).unwrap();
        let told = told.unwrap();
        assert!(bytes == ours && told.kept && told.error == 0.0 && told.squares > 1.0, "{format}: {told:?}");
    }
}

#[test]
fn scales_are_rounded_and_that_is_told() {
    for format in FORMATS {
        let both = Both::new(format, 1.0001);
        let (bytes, told) = emitted(&kept(both.format), &both).unwrap();
        let told = told.unwrap();
        let relative = (told.error / told.squares).sqrt();
        assert!(told.name == "w" && told.kept && (relative - 1e-4).abs() < 1e-5, "{format}: {relative}");
        let packed = PackedWeight::new(DType::Quant(both.format), ROWS, COLUMNS, &bytes).unwrap();
        let mut row = vec![0.0; COLUMNS];
        for r in [0, 17, ROWS - 1] {
            unpack_row(&packed, r, &mut row);
            // 1.0001 is nearer to one than f16 numbers are to each other, so scales round to what they were.
            assert_eq!(row, both.quantized(r).dequantize(both.format), "{format} row {r}");
        }
    }
}

#[test]
fn a_scale_beyond_f16_and_a_source_without_codes_are_refused() {
    let both = Both::new("q4g32", 1e9);
    let error = emitted(&kept(both.format), &both).unwrap_err();
    assert!(error.place == "w" && error.message.contains("does not fit f16"), "{error}");

    struct Floats;
    impl WeightSource for Floats {
        fn read_rows(&self, _: &str, _: Range<usize>, _: &mut [f32]) -> Result<(), Error> {
            Ok(())
        }
        fn read_bytes(&self, name: &str, _: Range<usize>, _: &mut [u8]) -> Result<(), Error> {
            Err(Error::new(name, "has no bytes"))
        }

        fn release_rows(&self, _: &str, _: Range<usize>) {}
    }
    let error = emitted(&kept(both.format), &Floats).unwrap_err();
    assert!(error.message.contains("no codes of q4g32"), "{error}");
}

#[test]
fn codes_that_leave_their_level_within_a_run_are_refused() {
    struct Mixed;
    impl WeightSource for Mixed {
        fn read_rows(&self, _: &str, _: Range<usize>, _: &mut [f32]) -> Result<(), Error> {
            Ok(())
        }
        fn read_bytes(&self, name: &str, _: Range<usize>, _: &mut [u8]) -> Result<(), Error> {
            Err(Error::new(name, "has no bytes"))
        }
        fn read_codes(&self, _: &str, _: QuantFormat, _: Range<usize>, out: CodeRows<'_>) -> Result<(), Error> {
            out.codes.iter_mut().enumerate().for_each(|(i, c)| *c = (i % 64) as u8);
            Ok(())
        }
        fn release_rows(&self, _: &str, _: Range<usize>) {}
    }
    let error = emitted(&kept(QuantFormat::L16), &Mixed).unwrap_err();
    assert!(error.place == "w" && error.message.contains("one level"), "{error}");
}
