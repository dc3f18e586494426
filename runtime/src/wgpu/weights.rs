//! Weights on the device: every range that a plan binds, packed into few buffers.
//!
//! Invariant: each range is placed once, at a multiple of [`BIND_ALIGN`] in a buffer no larger than the profile's limit,
//! and what a copy to the device holds on the host at any time is bounded, whatever the model's size.

use std::collections::BTreeMap;

use super::device::{Device, LoadError};
use super::plan::{BIND_ALIGN, Plan, Range, UPLOAD_CHUNK, UPLOAD_IN_FLIGHT};
use crate::mapped::Mapped;

/// Where the weights of a plan lie.
pub(super) struct Weights {
    buffers: Vec<wgpu::Buffer>,
    places: BTreeMap<Range, (usize, u64)>,
}

impl Weights {
    /// Creates the buffers and copies the weights there; `section` is where they lie in `file`.
    pub(super) fn upload(
        device: &Device,
        plan: &Plan,
        file: &Mapped,
        section: std::ops::Range<usize>,
    ) -> Result<Self, LoadError> {
        let outside = || LoadError::Plan("a weight lies outside the file".into());
        let (places, sizes) = place(plan);
        let mut buffers = Vec::with_capacity(sizes.len());
        for size in sizes {
            let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
            buffers.push(device.buffer("weights", size, usage)?);
        }
        let bytes = file.bytes().get(section.clone()).ok_or_else(outside)?;
        let mut in_flight = 0;
        device.guarded("weights", || {
            for (range, (buffer, offset)) in &places {
                let start = usize::try_from(range.offset).map_err(|_| outside())?;
                let len = usize::try_from(range.bytes).map_err(|_| outside())?;
                let from = bytes.get(start..).and_then(|b| b.get(..len)).ok_or_else(outside)?;
                let mut at = *offset;
                for chunk in from.chunks(UPLOAD_CHUNK) {
                    device.queue.write_buffer(&buffers[*buffer], at, chunk);
                    at += chunk.len() as u64;
                    in_flight += chunk.len();
                    if in_flight >= UPLOAD_IN_FLIGHT {
                        in_flight = 0;
                        device.queue.submit([]);
                        device.wait().map_err(|e| LoadError::Device(e.to_string()))?;
                    }
                }
                file.release(section.start + start..section.start + start + len);
            }
            device.queue.submit([]);
            device.wait().map_err(|e| LoadError::Device(e.to_string()))
        })??;
        Ok(Weights { buffers, places })
    }

    /// The buffer of a bound range and its place there.
    pub(super) fn find(&self, range: Range) -> Option<(&wgpu::Buffer, u64)> {
        let (buffer, offset) = self.places.get(&range)?;
        Some((self.buffers.get(*buffer)?, *offset))
    }
}

/// Buffer and offset of every range, in the order of the file, and the sizes of the buffers.
fn place(plan: &Plan) -> (BTreeMap<Range, (usize, u64)>, Vec<u64>) {
    let mut places: BTreeMap<Range, (usize, u64)> = plan.weights().into_iter().map(|r| (r, (0, 0))).collect();
    let mut sizes: Vec<u64> = Vec::new();
    for (range, place) in &mut places {
        let offset = sizes.last().map(|s| s.next_multiple_of(BIND_ALIGN));
        let offset = offset.filter(|o| o + range.bytes <= plan.profile.max_buffer).unwrap_or_else(|| {
            sizes.push(0);
            0
        });
        *place = (sizes.len() - 1, offset);
        if let Some(size) = sizes.last_mut() {
            *size = offset + range.bytes;
        }
    }
    (places, sizes)
}
