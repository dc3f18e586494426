@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row_group = group.x * GROUPS;
    let tile = (group.y + group.z * GRID_Y) * SIDE;
    if (row_group * 4u >= call.live || tile >= TILES) {
        return;
    }
    let column = thread % 16u;
    let slice = thread / COLUMNS;
    let base = min(tile + thread / 16u % SIDE, TILES - 1u) * TILE_WORDS;
