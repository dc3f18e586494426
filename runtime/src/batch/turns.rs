//! Whose turn it is: deficit round robin over rows.
//!
//! Invariant: when what all want does not fit into one step, each gets as many rows as any other over time, whatever the size
//! of its passes; nobody waits forever; and a step is never left emptier than it must be.

/// Rows that a sequence is given per turn.
const QUANTUM: i64 = 32;

/// What a sequence wants of the next step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    pub(super) rows: usize,
    pub(super) spans: usize,
    /// Rows that it was given and has not used; below 0 it has used rows that were left over.
    pub(super) credit: i64,
}

/// Chooses who takes part in a step of so many rows and spans, in order of `wants`, and settles their credits. Returns the
/// indices, ascending; at least one if anybody wants anything.
pub(super) fn choose(wants: &mut [Want], rows: usize, spans: usize) -> Vec<usize> {
    let total = |of: fn(&Want) -> usize| wants.iter().map(of).sum::<usize>();
    if total(|w| w.rows) <= rows && total(|w| w.spans) <= spans {
        // Nobody is kept waiting, so nobody owes anybody anything.
        wants.iter_mut().for_each(|w| w.credit = 0);
        return (0..wants.len()).collect();
    }
    let mut room = Room { rows, spans };
    let mut chosen = Vec::new();
    for want in wants.iter_mut() {
        want.credit = (want.credit + QUANTUM).min(rows_of(want).max(QUANTUM));
    }
    for (i, want) in wants.iter_mut().enumerate() {
        if want.credit >= rows_of(want) && room.take(want) {
            want.credit -= rows_of(want);
            chosen.push(i);
        }
    }
    // What is left over goes to those who come next, who pay for it later.
    for (i, want) in wants.iter_mut().enumerate() {
        if !chosen.contains(&i) && (room.take(want) || chosen.is_empty()) {
            want.credit -= rows_of(want);
            chosen.push(i);
        }
    }
    chosen.sort_unstable();
    chosen
}

fn rows_of(want: &Want) -> i64 {
    i64::try_from(want.rows).unwrap_or(i64::MAX)
}

struct Room {
    rows: usize,
    spans: usize,
}

impl Room {
    fn take(&mut self, want: &Want) -> bool {
        let fits = want.rows <= self.rows && want.spans <= self.spans;
        if fits {
            self.rows -= want.rows;
            self.spans -= want.spans;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wants(rows: &[usize]) -> Vec<Want> {
        rows.iter().map(|&rows| Want { rows, spans: 1, credit: 0 }).collect()
    }

    /// Rows that each is served in so many steps; who was served goes to the end of the line, as with the worker.
    fn served(rows: &[usize], step: usize, steps: usize) -> Vec<usize> {
        let mut line: Vec<(usize, Want)> = wants(rows).into_iter().enumerate().collect();
        let mut served = vec![0; rows.len()];
        for _ in 0..steps {
            let mut wants: Vec<Want> = line.iter().map(|(_, want)| *want).collect();
            let chosen = choose(&mut wants, step, 64);
            assert!(!chosen.is_empty());
            let (mut gone, mut stay) = (Vec::new(), Vec::new());
            for (i, ((who, _), want)) in line.into_iter().zip(wants).enumerate() {
                if chosen.contains(&i) {
                    served[who] += want.rows;
                    gone.push((who, want));
                } else {
                    stay.push((who, want));
                }
            }
            stay.extend(gone);
            line = stay;
        }
        served
    }

    #[test]
    fn all_take_part_while_they_fit() {
        assert_eq!(choose(&mut wants(&[4, 128, 4]), 136, 64), [0, 1, 2]);
        assert_eq!(choose(&mut wants(&[4, 4, 4]), 136, 2), [0, 1]);
    }

    #[test]
    fn one_that_fits_no_step_is_still_given_to_the_executor() {
        assert_eq!(choose(&mut wants(&[200]), 128, 64), [0]);
    }

    #[test]
    fn small_and_large_passes_get_the_same_share_of_rows() {
        let served = served(&[4, 128, 32, 4, 128], 128, 4000);
        // What wants four rows a step cannot use more than four a step.
        assert_eq!((served[0] > 8000, served[3] > 8000), (true, true), "{served:?}");
        let (a, b) = (served[1] as f64, served[4] as f64);
        assert!((0.9..1.1).contains(&(a / b)), "{served:?}");
    }

    proptest! {
        #[test]
        fn nobody_waits_forever(rows in proptest::collection::vec(1usize..128, 1..40)) {
            let count = rows.len();
            let served = served(&rows, 128, 40 * count);
            prop_assert!(served.iter().all(|&n| n > 0), "{:?}", served);
        }
    }
}
