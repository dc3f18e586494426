//! The base of a rotary embedding, read from its tables.

use dlx_ir::{DType, Tensor};

use super::look::floats;

/// The base `θ` where token p and pair k turn by `p · θ^(−2k/R)`, R features being rotated.
///
/// # Errors
/// The first angle that is another one.
pub(crate) fn theta(cos: &Tensor, sin: &Tensor) -> Result<f32, String> {
    let (&[1, tokens, half], Some(cosines), Some(sines)) = (&cos.shape[..], floats(cos), floats(sin)) else {
        return Err("has tables that are not one number for each token and pair".into());
    };
    if cosines.len() != tokens * half || sines.len() != cosines.len() || tokens < 2 || half < 2 {
        return Err("has tables that are too small to tell the base of the angles".into());
    }
    // Numbers are rounded to their type, and so may be the frequencies that tokens multiply.
    let coarse = matches!(cos.dtype, DType::F16 | DType::BF16);
    let (fixed, relative) = match cos.dtype {
        DType::BF16 => (5e-3, 8e-3),
        DType::F16 => (6e-4, 1e-3),
        _ => (2e-6, 1e-6),
    };
    if let Some(i) = (0..cosines.len()).find(|i| {
        let length = cosines[*i] * cosines[*i] + sines[*i] * sines[*i];
        (length - 1.0).abs() > 4.0 * fixed
    }) {
        let factor = (cosines[i] * cosines[i] + sines[i] * sines[i]).sqrt();
        return Err(format!("has tables that are scaled by {factor:.4}, which is not compiled yet"));
    }
    let exponent = |k: usize| -2.0 * k as f64 / (2 * half) as f64;
    let wrong = |theta: f64| {
        (0..tokens * half).find(|i| {
            let (p, k) = ((i / half) as f64, i % half);
            let angle = p * libm::pow(theta, exponent(k));
            let far = (libm::cos(angle) - cosines[*i]).abs().max((libm::sin(angle) - sines[*i]).abs());
            far > fixed + relative * angle
        })
    };
    // The slowest pair tells it best: its angle is small, so nothing of it is lost. Tables of 16 bits say most of it where it
    // has grown.
    let slowest = half - 1;
    let angle_of = |p: usize| libm::atan2(sines[p * half + slowest], cosines[p * half + slowest]);
    let grows = |p: &usize| (angle_of(*p) - angle_of(*p - 1)).abs() < 0.5 && angle_of(*p) < 1.0;
    let token = if coarse { (1..tokens).take_while(grows).last().unwrap_or(1) } else { 1 };
    let angle = angle_of(token) / token as f64;
    let estimate = libm::pow(angle.max(f64::MIN_POSITIVE), 1.0 / exponent(slowest));
    // A base is a round number; the roundest one that fits is it.
    let mut candidates: Vec<f64> = (0..7).filter_map(|digits| format!("{estimate:.digits$e}").parse().ok()).collect();
    if !coarse {
        candidates.push(f64::from(estimate as f32));
    }
    if let Some(theta) = candidates.iter().find(|c| c.is_finite() && **c > 0.0 && wrong(**c).is_none()) {
        return Ok(*theta as f32);
    }
    let nearest = candidates.iter().filter(|c| c.is_finite()).max_by_key(|c| wrong(**c));
    let (base, at) = match nearest {
        Some(base) => (*base, wrong(*base).unwrap_or(0)),
        None => return Err("has tables whose angles are no powers of a base".into()),
    };
    let found = libm::atan2(sines[at], cosines[at]);
    Err(format!(
        "turns pair {} of token {} by {found:.6}, which is not {base:.1} to the power of −{}/{}: angles that are scaled by \
         rules of their own are not compiled yet",
        at % half,
        at / half,
        2 * (at % half),
        2 * half
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dlx_ir::{Op, compute};

    fn tables(dtype: DType, tokens: usize, half: usize, angle: impl Fn(usize, usize) -> f32) -> [Tensor; 2] {
        let angles: Vec<f32> = (0..tokens * half).map(|i| angle(i / half, i % half)).collect();
        [libm::cosf as fn(f32) -> f32, libm::sinf].map(|f| {
            let table = Tensor::f32(&[1, tokens, half], angles.iter().map(|a| f(*a)).collect());
            compute(&Op::Cast { to: dtype, wrap: false }, &[&table]).unwrap().remove(0)
        })
    }

    fn plain(theta: f32, half: usize) -> impl Fn(usize, usize) -> f32 {
        move |p, k| p as f32 * (1.0 / libm::powf(theta, (2 * k) as f32 / (2 * half) as f32))
    }

    #[test]
    fn bases_come_out_as_they_were() {
        for theta in [10_000.0, 1_000_000.0, 500_000.0, 10_007.0, 1e7, 100.0, 8e6] {
            for (half, tokens) in [(8, 5), (64, 40), (16, 200)] {
                let [cos, sin] = tables(DType::F32, tokens, half, plain(theta, half));
                assert_eq!(super::theta(&cos, &sin), Ok(theta), "{theta} {half} {tokens}");
            }
        }
        for dtype in [DType::F16, DType::BF16] {
            for theta in [10_000.0, 1_000_000.0, 500_000.0, 8e6] {
                let [cos, sin] = tables(dtype, 40, 32, plain(theta, 32));
                assert_eq!(super::theta(&cos, &sin), Ok(theta), "{theta} {dtype}");
            }
        }
    }

    #[test]
    fn angles_may_be_products_of_halves() {
        let half = |x: f32| half::f16::from_f32(x).to_f32();
        for (theta, tokens) in [(10_000.0, 40), (10_000.0, 256), (1_000_000.0, 256)] {
            let frequency = plain(theta, 32);
            let [cos, sin] = tables(DType::F16, tokens, 32, |p, k| half(p as f32 * half(frequency(1, k))));
            assert_eq!(super::theta(&cos, &sin), Ok(theta), "{theta} {tokens}");
        }
    }

    #[test]
    fn other_angles_are_refused() {
        let all = |angle: &dyn Fn(usize, usize) -> f32| tables(DType::F32, 40, 16, angle);
        let refused = |[cos, sin]: &[Tensor; 2]| super::theta(cos, sin).unwrap_err();
        let half = plain(1e4, 16);
        // Linear scaling, and a scaling of the slow half.
        assert!(refused(&all(&|p, k| half(p, k) / 4.0)).contains("turns pair 0 of token 1"));
        assert!(refused(&all(&|p, k| if k < 8 { half(p, k) } else { half(p, k) / 8.0 })).contains("turns pair"));
        assert!(refused(&all(&|p, k| half(p + 3, k))).contains("turns pair 0 of token 0"));
        let [mut cos, mut sin] = all(&half);
        for t in [&mut cos, &mut sin] {
            *t = compute(&Op::Scale { by: 1.2 }, &[t]).unwrap().remove(0);
        }
        assert!(super::theta(&cos, &sin).unwrap_err().contains("scaled by 1.2"));
    }
}
