fn silu(x: f32) -> f32 {
    // Beyond 80 the result is zero in any case, and the exponential must not overflow.
    return x / (1.0 + exp(min(-x, 80.0)));
}
