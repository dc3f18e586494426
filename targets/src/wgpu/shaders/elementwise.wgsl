@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let i = (group.x + group.y * GRID_X) * 256u + thread;
    if (i < min(call.live, ROWS) * WIDTH) {
        out[i] = value(i);
    }
}
