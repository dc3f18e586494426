    workgroupBarrier();
    for (var turn = 0u; turn < SLICES; turn++) {
        if (slice == turn) {
            ADD
        }
        workgroupBarrier();
    }
