//! Strided views: which elements of a tensor, in which order, a result is made of.
//!
//! Invariant: a view reads no element beyond the tensor that it was made for; whoever changes its strides keeps it so.

/// Sizes with the distance in elements between neighbors along each.
pub(super) struct View {
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<isize>,
    /// The first element.
    pub(super) base: usize,
}

impl View {
    /// All elements of a tensor in order.
    pub(super) fn new(shape: &[usize]) -> Self {
        let mut strides = vec![1; shape.len()];
        for d in (1..shape.len()).rev() {
            strides[d - 1] = strides[d] * shape[d] as isize;
        }
        View { shape: shape.to_vec(), strides, base: 0 }
    }

    /// A tensor whose sizes of 1, and the whole in front, repeat until the sizes are those of a result.
    pub(super) fn repeated(shape: &[usize], to: &[usize]) -> Self {
        let own = View::new(shape);
        let mut strides = vec![0; to.len()];
        let front = to.len() - shape.len();
        for (d, (&size, &stride)) in shape.iter().zip(&own.strides).enumerate() {
            strides[front + d] = if size == 1 { 0 } else { stride };
        }
        View { shape: to.to_vec(), strides, base: 0 }
    }

    /// Index of one element.
    pub(super) fn at(&self, place: &[usize]) -> usize {
        let distance = place.iter().zip(&self.strides).map(|(i, stride)| *i as isize * stride).sum();
        self.base.wrapping_add_signed(distance)
    }

    /// Indices of the elements, in row-major order of the view.
    pub(super) fn offsets(&self) -> impl Iterator<Item = usize> + use<> {
        // Dimensions that are one walk through memory become one.
        let mut dims: Vec<(usize, isize)> = Vec::new();
        for (&size, &stride) in self.shape.iter().zip(&self.strides).filter(|(size, _)| **size != 1) {
            match dims.last_mut() {
                Some((n, s)) if *s == stride * size as isize => (*n, *s) = (*n * size, stride),
                _ => dims.push((size, stride)),
            }
        }
        let (inner, stride) = dims.pop().unwrap_or((1, 0));
        let starts = Starts { index: vec![0; dims.len()], dims, next: Some(self.base) };
        starts.flat_map(move |start| (0..inner as isize).map(move |i| start.wrapping_add_signed(i * stride)))
    }
}

/// Where the innermost walks of a view begin.
struct Starts {
    dims: Vec<(usize, isize)>,
    index: Vec<usize>,
    next: Option<usize>,
}

impl Iterator for Starts {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let now = self.next.take()?;
        let mut at = now;
        for (i, (size, stride)) in self.index.iter_mut().zip(&self.dims).rev() {
            *i += 1;
            at = at.wrapping_add_signed(*stride);
            if *i < *size {
                self.next = Some(at);
                break;
            }
            at = at.wrapping_add_signed(-stride * *size as isize);
            *i = 0;
        }
        Some(now)
    }
}

/// The rows of a tensor along one dimension: `outer · n · inner` elements, of which neighbors in a row are `inner` apart.
#[derive(Clone, Copy)]
pub(super) struct Lanes {
    pub(super) outer: usize,
    pub(super) n: usize,
    pub(super) inner: usize,
}

impl Lanes {
    /// Rows along an axis, which inference has checked.
    pub(super) fn new(shape: &[usize], axis: i64) -> Self {
        let axis = axis as usize;
        let count = |dims: &[usize]| dims.iter().product();
        Lanes { outer: count(&shape[..axis]), n: shape[axis], inner: count(&shape[axis + 1..]) }
    }

    /// The first element of each row.
    pub(super) fn starts(self) -> impl Iterator<Item = usize> {
        (0..self.outer).flat_map(move |o| (0..self.inner).map(move |i| o * self.n * self.inner + i))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_walk_as_the_strides_say() {
        let all = |v: &View| v.offsets().collect::<Vec<_>>();
        assert_eq!(all(&View::new(&[2, 3])), [0, 1, 2, 3, 4, 5]);
        assert_eq!(all(&View::new(&[])), [0]);
        assert_eq!(all(&View::repeated(&[2, 1], &[2, 2, 3])), [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]);
        let turned = View { shape: vec![3, 1, 2], strides: vec![1, 6, 3], base: 0 };
        assert_eq!(all(&turned), [0, 3, 1, 4, 2, 5]);
        let backwards = View { shape: vec![2, 2], strides: vec![-3, -1], base: 5 };
        assert_eq!(all(&backwards), [5, 4, 2, 1]);
        assert_eq!(Lanes::new(&[2, 2, 2], 1).starts().collect::<Vec<_>>(), [0, 1, 4, 5]);
    }
}
