//! How the dimensions of a value of any rank lie in rows of features.
//!
//! Invariant: every element of the value is one element of the rows and back; views copy nothing. What would mix tokens with
//! features, or leave some out, is no view.

/// One dimension.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Axis {
    /// Of size 1.
    One,
    /// The tokens.
    Rows(usize),
    /// So many features, this far apart.
    Features(usize, usize),
    /// Of each of the tokens so many features, this far apart: how norms of heads flatten what is in front of a head.
    Joined(usize, usize, usize),
}

impl Axis {
    fn size(self) -> usize {
        match self {
            Axis::One => 1,
            Axis::Rows(n) | Axis::Features(n, _) => n,
            Axis::Joined(rows, n, _) => rows * n,
        }
    }
}

/// The axes of `[…, T, features]`.
pub(crate) fn plain(dims: &[usize], rows: usize) -> Result<Vec<Axis>, String> {
    let (features, rest) = dims.split_last().ok_or("is a scalar")?;
    let mut axes = vec![Axis::One; rest.len()];
    match rest.iter().position(|n| *n != 1) {
        Some(i) if rest[i] == rows && rest[i + 1..].iter().all(|n| *n == 1) => axes[i] = Axis::Rows(rows),
        _ => return Err(format!("has not the {rows} tokens of one sequence as its rows")),
    }
    axes.push(feature_axis(*features, 1));
    Ok(axes)
}

/// Whether a value is `[…, T, features]`, with all features in order.
pub(crate) fn is_plain(axes: &[Axis], features: usize) -> bool {
    let inside: Vec<Axis> = axes.iter().copied().filter(|a| *a != Axis::One).collect();
    match inside[..] {
        [Axis::Rows(_), last] => last == feature_axis(features, 1) && axes.last() == Some(&last),
        [Axis::Rows(_)] => features == 1 && axes.last() == Some(&Axis::One),
        _ => false,
    }
}

/// The number of heads and their width, if a value is `[1, heads, T, width]`.
pub(crate) fn heads(axes: &[Axis], features: usize) -> Option<(usize, usize)> {
    let [Axis::One, heads, Axis::Rows(_), Axis::Features(width, 1)] = *axes else { return None };
    let stride = if let Axis::Features(_, stride) = heads { stride } else { width };
    (!matches!(heads, Axis::Rows(_)) && stride == width && heads.size() * width == features)
        .then(|| (heads.size(), width))
}

/// The width of the last dimension, if a value's features are chunks of it.
pub(crate) fn chunk(axes: &[Axis]) -> Option<usize> {
    match axes.last()? {
        Axis::Features(width, 1) => Some(*width),
        _ => None,
    }
}

/// The axes after a transposition.
pub(crate) fn transpose(axes: &[Axis], perm: &[i64]) -> Option<Vec<Axis>> {
    perm.iter().map(|p| axes.get(usize::try_from(*p).ok()?).copied()).collect()
}

/// The axes under other sizes.
pub(crate) fn reshape(axes: &[Axis], dims: &[usize]) -> Result<Vec<Axis>, String> {
    let mut left: Vec<Axis> = axes.iter().copied().filter(|a| *a != Axis::One).rev().collect();
    let mut result = Vec::with_capacity(dims.len());
    for &dim in dims {
        if dim == 1 {
            result.push(Axis::One);
            continue;
        }
        let mut axis = left.pop().ok_or("has other elements than its operand")?;
        while axis.size() < dim {
            axis = match (axis, left.pop()) {
                (Axis::Features(a, far), Some(Axis::Features(b, near))) if far == near * b => {
                    Axis::Features(a * b, near)
                }
                (Axis::Features(..), Some(Axis::Features(..))) => {
                    return Err("changes the order of the features".into());
                }
                (Axis::Rows(rows), Some(Axis::Features(n, near))) => Axis::Joined(rows, n, near),
                _ => return Err("joins tokens with features".into()),
            };
        }
        if axis.size() > dim {
            axis = match axis {
                Axis::Features(n, near) if n % dim == 0 => {
                    left.push(Axis::Features(n / dim, near));
                    Axis::Features(dim, near * (n / dim))
                }
                Axis::Joined(rows, n, near) if rows == dim => {
                    left.push(Axis::Features(n, near));
                    Axis::Rows(rows)
                }
                Axis::Joined(rows, n, near) if dim % rows == 0 && n % (dim / rows) == 0 => {
                    let part = n / (dim / rows);
                    left.push(Axis::Features(part, near));
                    Axis::Joined(rows, dim / rows, near * part)
                }
                Axis::Features(..) => return Err("splits the features unevenly".into()),
                _ => return Err("splits the tokens".into()),
            };
        }
        result.push(axis);
    }
    Ok(result)
}

fn feature_axis(n: usize, stride: usize) -> Axis {
    if n == 1 { Axis::One } else { Axis::Features(n, stride) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_split_turned_and_joined_again() {
        let axes = plain(&[1, 5, 24], 5).unwrap();
        assert!(is_plain(&axes, 24));
        let split = reshape(&axes, &[1, 5, 3, 8]).unwrap();
        assert_eq!(split, [Axis::One, Axis::Rows(5), Axis::Features(3, 8), Axis::Features(8, 1)]);
        assert_eq!((chunk(&split), heads(&split, 24)), (Some(8), None));
        let turned = transpose(&split, &[0, 2, 1, 3]).unwrap();
        assert_eq!(heads(&turned, 24), Some((3, 8)));
        assert!(!is_plain(&turned, 24));
        let flat = reshape(&turned, &[3, 5, 8]).unwrap();
        assert_eq!(reshape(&flat, &[1, 3, 5, 8]).unwrap(), turned);
        let back = transpose(&turned, &[0, 2, 1, 3]).unwrap();
        assert_eq!(reshape(&back, &[1, 5, 24]).unwrap(), axes);
        assert_eq!(reshape(&axes, &[5, 24]).unwrap(), axes[1..]);
        assert_eq!(
            reshape(&axes, &[1, 5, 3, 2, 4]).unwrap()[2..],
            [Axis::Features(3, 8), Axis::Features(2, 4), Axis::Features(4, 1)]
        );
    }

    #[test]
    fn what_is_no_view_says_why() {
        let axes = plain(&[1, 6, 24], 6).unwrap();
        // Heads may be joined with the tokens in front of them, and parted again.
        let joined = reshape(&axes, &[1, 18, 8]).unwrap();
        assert_eq!(joined, [Axis::One, Axis::Joined(6, 3, 8), Axis::Features(8, 1)]);
        assert_eq!(reshape(&joined, &[1, 6, 24]).unwrap(), axes);
        assert!(!is_plain(&joined, 24));
        assert!(reshape(&axes, &[2, 3, 24]).unwrap_err().contains("splits the tokens"));
        assert!(reshape(&axes, &[6, 5, 5]).unwrap_err().contains("unevenly"));
        let turned = transpose(&reshape(&axes, &[1, 6, 3, 8]).unwrap(), &[0, 1, 3, 2]).unwrap();
        assert!(reshape(&turned, &[1, 6, 24]).unwrap_err().contains("order of the features"));
        assert!(plain(&[2, 6, 24], 6).is_err() && plain(&[6], 6).is_err());
        assert_eq!(heads(&turned, 24), None);
    }

    #[test]
    fn one_head_is_a_head() {
        let axes = transpose(&reshape(&plain(&[1, 5, 8], 5).unwrap(), &[1, 5, 1, 8]).unwrap(), &[0, 2, 1, 3]).unwrap();
        assert_eq!(heads(&axes, 8), Some((1, 8)));
    }
}
