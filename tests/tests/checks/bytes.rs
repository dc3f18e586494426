//! Wrong bytes among packed weights: the check of packing names the number, what it is made of and the byte.

use dlx_ir::WeightDef;
use dlx_passes::parse_pipeline;
use dlxc::check::device::{WrongByte, first_wrong, pack};
use dlxc::check::each::{SEED, Tolerances, verify_each};
use dlxc::check::source::Seeded;

use crate::model::{Output, PIPELINE, SHARDING, model};

/// Where the layout puts column 37 of row 21 of a matrix of 64 columns in groups of 32: the tile of rows 16 to 31, in it a
/// vector per 4 or 8 columns, then the scales of two groups of sixteen rows; the format, its bits, and the other code.
const FORMATS: &[(&str, u64, u64, u64, u8)] = &[
    (PIPELINE, 2176, 9 * 64 + 5 * 4 + 1, 2048 + 32 + 10, 0x04),
    (SHARDING, 1152, 4 * 64 + 5 * 4 + 1, 1024 + 32 + 10, 0x40),
];

#[test]
fn a_wrong_byte_of_packed_weights_is_named() {
    for &(pipeline, tile, code, scale, flip) in FORMATS {
        let module = model(Output::Linear);
        let weights = Seeded { module: &module, seed: SEED };
        let steps = parse_pipeline(pipeline).unwrap();
        let (_, stage) = verify_each(&module, &steps, &weights, SEED, &Tolerances::default(), &mut |_| {}).unwrap();
        let packed = pack(&stage, &weights).unwrap();
        let look = |section: &[u8]| first_wrong(&stage, &weights, &packed.module, section).unwrap();
        let (count, wrong) = look(packed.section());
        assert!(count > 10_000 && wrong.is_none(), "{count} numbers: {wrong:?}");

        let mut stored = packed.module.weights.iter().filter(|(_, w)| w.name.starts_with("layers.1.down."));
        let (_, stored) = stored.next().unwrap();
        let WeightDef::Stored { offset, .. } = stored.def else { panic!("is not packed") };
        let wrong_at = |byte: u64, flip: u8| {
            let mut section = packed.section().to_vec();
            section[usize::try_from(byte).unwrap()] ^= flip;
            look(&section).1.unwrap_or_else(|| panic!("{pipeline}: byte {byte} is not looked at"))
        };
        let wrong = wrong_at(offset + tile + code, flip);
        let WrongByte { weight, sources, at, byte, holds, .. } = &wrong;
        assert!(weight.contains(&format!("@{}", stored.name)), "{weight}");
        assert_eq!((&sources[..], at, holds), (&["layers.1.down".to_owned()][..], &[21, 37], &"code"));
        assert_eq!(*byte, offset + tile + code, "{pipeline}");
        println!("{:<28} {at:?} {holds:<6} byte {byte}: {} for {}", stored.name, wrong.found, wrong.expected);

        // A scale is that of its whole group; its first number may be zero with any.
        let wrong = wrong_at(offset + tile + scale, 0x11);
        let WrongByte { at, byte, holds, .. } = &wrong;
        assert_eq!((at[0], at[1] / 32, holds), (21, 1, &"scale"), "{wrong:?}");
        assert_eq!(*byte, offset + tile + scale, "{pipeline}");
        println!("{:<28} {at:?} {holds:<6} byte {byte}: {} for {}", stored.name, wrong.found, wrong.expected);

        // A vector is stored as f32.
        let (_, norm) = packed.module.weights.iter().find(|(_, w)| w.name.starts_with("layers.0.q_norm")).unwrap();
        let WeightDef::Stored { offset, .. } = norm.def else { panic!("is not packed") };
        let wrong = wrong_at(offset + 4 * 3 + 2, 0x08);
        assert_eq!((wrong.at, wrong.byte, wrong.holds), ([3, 0], offset + 4 * 3, "number"));
        assert_eq!(wrong.sources, ["layers.0.q_norm"]);
    }
}
