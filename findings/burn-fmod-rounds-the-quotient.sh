#!/usr/bin/env bash
# burn 0.22.1: `Tensor::fmod` is x − y·trunc(x / y) in the tensor's own type, and so is wrong where the quotient is rounded.
#
# Its documentation calls it IEEE 754's, with the sign of the dividend. C's fmod, Rust's %, NumPy's and PyTorch's are exact:
# of f32 numbers, fmod(1, 0.1) is 0.09999999, since 0.1f32 is a little more than a tenth. Here 1 / 0.1 is rounded to 10, and
# the result is 0; so are fmod(1e10, 3), which is 1, and fmod(-1e20, 7), which is -3. `Tensor::remainder` on the same backend
# (flex) is exact.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "fmod"
version = "0.1.0"
edition = "2024"

[dependencies]
burn = { version = "=0.22.1", default-features = false, features = ["flex", "std"] }
TOML
cat >"$dir/src/main.rs" <<'RUST'
use burn::tensor::{Device, Tensor};

fn main() {
    let pairs: [(f32, f32); 4] = [(7.5, 2.0), (1.0, 0.1), (1e10, 3.0), (-1e20, 7.0)];
    let tensor = |x: Vec<f32>| Tensor::<1>::from_floats(x.as_slice(), &Device::flex());
    let (x, y) = (tensor(pairs.map(|p| p.0).to_vec()), tensor(pairs.map(|p| p.1).to_vec()));
    let values = |t: Tensor<1>| t.try_into_vec_as::<f32>().expect("f32 can be read");
    let fmod = values(x.clone().fmod(y.clone()));
    let remainder = values(x.abs().remainder(y));
    for (((x, y), fmod), remainder) in pairs.into_iter().zip(fmod).zip(remainder) {
        let same = fmod == x % y;
        println!("x {x:e}, y {y}: fmod {fmod:e}, exact {:e}, same {same}; remainder of |x| {}", x % y, remainder == x.abs() % y);
    }
}
RUST
cd "$dir"
cargo build --quiet
echo "burn 0.22.1"
./target/debug/fmod | tee said
[ "$(grep -c 'same true' said)" = 1 ] && [ "$(grep -c 'same false' said)" = 3 ] && [ "$(grep -c 'of |x| true' said)" = 4 ]
