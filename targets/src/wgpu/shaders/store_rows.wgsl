@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.y < call.live && id.x < WIDTH) {
        state[id.y * WIDTH + id.x] = x[id.y * WIDTH + id.x];
    }
}
