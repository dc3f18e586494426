fn head_factor(first: u32, thread: Thread) -> f32 {
    return 1.0;
}

fn input(first: u32, i: u32, factor: f32) -> f32 {
    return x[first + i];
}
