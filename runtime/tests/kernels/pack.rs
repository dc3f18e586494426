//! Packed layouts: sizes, and packing then unpacking.

use super::{Rng, TestWeight};
use dlx_ir::DType;
use dlx_runtime::cpu::{self, PackedWeight};

pub(crate) const FORMATS: [&str; 18] = [
    "f32", "f16", "bf16", "q4g32", "q4g64", "q4g128", "q4g32m", "q4g64m", "q4g128m", "q8", "q8m", "q8g32", "q8g64",
    "q8g128", "q8g32m", "q8g64m", "q8g128m", "l16",
];

#[test]
fn unpacked_rows_are_the_packed_values() {
    let mut rng = Rng::new(1);
    for format in FORMATS {
        for (n, k) in [(1, 1), (16, 128), (17, 33), (37, 200), (5, 128)] {
            let w = TestWeight::random(&mut rng, format.parse().unwrap(), n, k);
            let mut row = vec![0f32; k];
            for r in 0..n {
                cpu::unpack_row(&w.packed(), r, &mut row);
                for (got, want) in row.iter().zip(&w.values[r * k..]) {
                    assert!((f64::from(*got) - want).abs() <= want.abs() * 1e-7, "{format} [{n}, {k}] row {r}");
                }
            }
        }
    }
}

#[test]
fn tiles_are_multiples_of_a_cache_line_and_make_up_the_weight() {
    for format in FORMATS {
        let dtype: DType = format.parse().unwrap();
        for (n, k) in [(1, 1), (16, 32), (100, 333), (2048, 6144)] {
            let tile = cpu::tile_bytes(dtype, k).unwrap();
            assert!(tile.is_multiple_of(64), "{format} k={k}");
            assert_eq!(cpu::packed_bytes(dtype, n, k), Some(tile * n.div_ceil(16)));
        }
    }
    assert_eq!(cpu::packed_bytes("l16".parse().unwrap(), 2048, 2048), Some(128 * 16 * 1088));
    assert_eq!(cpu::packed_bytes("q4g32".parse().unwrap(), 2048, 2048), Some(2048 * 2048 / 2 + 2048 * 64 * 2));
}

#[test]
fn sizes_that_overflow_and_types_that_are_no_weights_have_no_size() {
    for format in FORMATS {
        let dtype: DType = format.parse().unwrap();
        assert_eq!(cpu::packed_bytes(dtype, usize::MAX, 1 << 20), None, "{format}");
        assert_eq!(cpu::packed_bytes(dtype, 16, usize::MAX), None, "{format}");
    }
    assert_eq!(cpu::packed_bytes(DType::I32, 16, 16), None);
    assert_eq!(cpu::packed_bytes(DType::Bool, 16, 16), None);
    assert!(PackedWeight::new(DType::F32, 16, 4, &[0; 255]).is_none());
    assert!(PackedWeight::new(DType::F32, 16, 4, &[0; 256]).is_some());
}
