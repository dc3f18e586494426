//! How codes of a few bits lie in a stored tensor.
//!
//! Invariant: nothing outside the bytes is read; a code that is not there is 0. Whether a tensor has the size that its codes
//! ask for is checked where it is opened.

/// Columns of AWQ's matrices in a word of eight codes, by their place in it.
const AWQ: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// Order of the codes of a matrix `[rows, columns]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Words `[rows, ceil(columns · bits / 32)]`: each row is a stream of bits, the first in the lowest.
    Along,
    /// Words `[columns · bits / 32, rows]`: the stream of a row runs down a column of them.
    Down,
    /// Words `[columns, rows / 8]` of eight codes of 4 bits, in AWQ's order.
    Interleaved,
    /// A byte for each code.
    Bytes,
    /// Bytes `[rows, columns / 2]` of two codes of 4 bits, the first in the lower.
    LowFirst,
    /// Bytes of two codes of 4 bits, the first in the upper, rows one behind the other.
    HighFirst,
}

/// Codes of a matrix where they lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codes<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) order: Order,
    /// Bits of a code, at most 8.
    pub(crate) bits: usize,
    /// Rows and columns.
    pub(crate) shape: [usize; 2],
}

impl Codes<'_> {
    /// The codes of a row; `out` has a place for each column.
    pub(crate) fn row(&self, row: usize, out: &mut [u8]) {
        let [rows, columns] = self.shape;
        match self.order {
            Order::Along => {
                let first = row * (columns * self.bits).div_ceil(32);
                self.stream(|i| first + i, out);
            }
            Order::Down => self.stream(|i| i * rows + row, out),
            Order::Interleaved => {
                let (first, shift) = self.interleaved(row);
                for (column, o) in out.iter_mut().enumerate() {
                    *o = low(u64::from(self.word(column * (rows / 8) + first) >> shift), 4);
                }
            }
            Order::Bytes => {
                let bytes = self.bytes.get(row * columns..).unwrap_or_default();
                out.iter_mut().zip(bytes).for_each(|(o, b)| *o = *b);
            }
            Order::LowFirst | Order::HighFirst => {
                out.iter_mut().enumerate().for_each(|(column, o)| *o = self.nibble(row, column));
            }
        }
    }

    /// One code.
    pub(crate) fn get(&self, row: usize, column: usize) -> u8 {
        let [rows, columns] = self.shape;
        let streamed = |place: &dyn Fn(usize) -> usize| {
            let (word, shift) = (column * self.bits / 32, column * self.bits % 32);
            let more = if shift + self.bits > 32 { self.word(place(word + 1)) } else { 0 };
            low((u64::from(more) << 32 | u64::from(self.word(place(word)))) >> shift, self.bits)
        };
        match self.order {
            Order::Along => streamed(&|i| row * (columns * self.bits).div_ceil(32) + i),
            Order::Down => streamed(&|i| i * rows + row),
            Order::Interleaved => {
                let (first, shift) = self.interleaved(row);
                low(u64::from(self.word(column * (rows / 8) + first) >> shift), 4)
            }
            Order::Bytes => self.bytes.get(row * columns + column).copied().unwrap_or(0),
            Order::LowFirst | Order::HighFirst => self.nibble(row, column),
        }
    }

    /// Consecutive codes of the stream whose words are at these places.
    fn stream(&self, place: impl Fn(usize) -> usize, out: &mut [u8]) {
        let (mut held, mut bits, mut next) = (0u64, 0, 0);
        for o in out {
            if bits < self.bits {
                held |= u64::from(self.word(place(next))) << bits;
                (bits, next) = (bits + 32, next + 1);
            }
            *o = low(held, self.bits);
            held >>= self.bits;
            bits -= self.bits;
        }
    }

    /// Word of a row among those of a column, and how far its code is shifted there.
    fn interleaved(&self, row: usize) -> (usize, usize) {
        let place = AWQ.iter().position(|column| *column == row % 8).unwrap_or(0);
        (row / 8, 4 * place)
    }

    fn nibble(&self, row: usize, column: usize) -> u8 {
        let (rows_apart, upper) = match self.order {
            Order::LowFirst => (self.shape[1].div_ceil(2) * 2, 1),
            _ => (self.shape[1], 0),
        };
        let at = row * rows_apart + column;
        let byte = self.bytes.get(at / 2).copied().unwrap_or(0);
        if at % 2 == upper { byte >> 4 } else { byte & 15 }
    }

    fn word(&self, at: usize) -> u32 {
        let bytes = self.bytes.get(at * 4..).and_then(|b| b.first_chunk());
        bytes.map_or(0, |b| u32::from_le_bytes(*b))
    }
}

/// The lowest bits, at most 8.
fn low(word: u64, bits: usize) -> u8 {
    let [byte, ..] = (word & ((1 << bits) - 1)).to_le_bytes();
    byte
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts codes where each order says, bit by bit.
    fn written(order: Order, bits: usize, shape: [usize; 2], code: impl Fn(usize, usize) -> u8) -> Vec<u8> {
        let [rows, columns] = shape;
        let words = (columns * bits).div_ceil(32);
        let mut bytes = vec![0u8; rows.next_multiple_of(8) * (words * 4).max(columns + 1)];
        for row in 0..rows {
            for column in 0..columns {
                for bit in 0..bits {
                    let in_stream = column * bits + bit;
                    let at = match order {
                        Order::Along => row * words * 32 + in_stream,
                        Order::Down => (in_stream / 32 * rows + row) * 32 + in_stream % 32,
                        Order::Interleaved => {
                            let nibble = [0, 4, 1, 5, 2, 6, 3, 7][row % 8];
                            (column * (rows / 8) + row / 8) * 32 + 4 * nibble + bit
                        }
                        Order::Bytes => (row * columns + column) * 8 + bit,
                        Order::LowFirst => (row * columns.div_ceil(2) * 2 + column) * 4 + bit,
                        Order::HighFirst => ((row * columns + column) ^ 1) * 4 + bit,
                    };
                    bytes[at / 8] |= (code(row, column) >> bit & 1) << (at % 8);
                }
            }
        }
        bytes
    }

    #[test]
    fn codes_are_found_wherever_they_lie() {
        for (order, bits, shape) in [
            (Order::Along, 3, [8, 50]),
            (Order::Along, 4, [8, 33]),
            (Order::Along, 5, [3, 31]),
            (Order::Along, 8, [4, 9]),
            (Order::Down, 2, [8, 32]),
            (Order::Down, 3, [16, 64]),
            (Order::Down, 4, [5, 40]),
            (Order::Down, 8, [3, 12]),
            (Order::Interleaved, 4, [24, 5]),
            (Order::Bytes, 8, [3, 5]),
            (Order::LowFirst, 4, [3, 6]),
            (Order::HighFirst, 4, [3, 6]),
            (Order::HighFirst, 4, [2, 5]),
        ] {
            let code = |row: usize, column: usize| ((row * 37 + column * 11 + row * column) % (1 << bits)) as u8;
            let bytes = written(order, bits, shape, code);
            let codes = Codes { bytes: &bytes, order, bits, shape };
            for row in 0..shape[0] {
                let mut out = vec![0; shape[1]];
                codes.row(row, &mut out);
                let wanted: Vec<u8> = (0..shape[1]).map(|column| code(row, column)).collect();
                assert_eq!(out, wanted, "{order:?} {bits} row {row}");
                let single: Vec<u8> = (0..shape[1]).map(|column| codes.get(row, column)).collect();
                assert_eq!(single, wanted, "{order:?} {bits} row {row}");
            }
            // Cut short, it is zeros and no panic.
            let short = Codes { bytes: &bytes[..3], ..codes };
            short.row(shape[0] - 1, &mut vec![0; shape[1]]);
            assert_eq!(short.get(shape[0] - 1, shape[1] - 1), 0);
        }
    }
}
