//! Tokens by their bytes, so that an automaton reads what they have in common once.
//!
//! Invariant: nodes are in the order of a walk from the root, and each knows where its subtree ends.

/// A byte of tokens that begin alike.
#[derive(Debug)]
struct Node {
    byte: u8,
    depth: u32,
    /// Node behind its subtree.
    end: u32,
    /// Where its own tokens begin and end.
    first: u32,
    last: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Trie {
    nodes: Vec<Node>,
    /// Tokens by their bytes, equal ones by id.
    ids: Vec<i32>,
}

/// Longer tokens are left out: no text needs them.
pub(super) const LONGEST: usize = 256;

impl Trie {
    /// A trie of tokens and their bytes, of which there are 1 to [`LONGEST`].
    pub(super) fn new(mut tokens: Vec<(&[u8], i32)>) -> Self {
        tokens.sort_unstable();
        let mut trie = Self::default();
        let mut path: Vec<usize> = Vec::new();
        let mut before: &[u8] = &[];
        for (bytes, id) in tokens {
            let same = bytes.iter().zip(before).take_while(|(a, b)| a == b).count();
            trie.close(&mut path, same);
            for (depth, &byte) in (1..).zip(bytes).skip(same) {
                path.push(trie.nodes.len());
                let here = number(trie.ids.len());
                trie.nodes.push(Node { byte, depth, end: 0, first: here, last: here });
            }
            trie.ids.push(id);
            let here = number(trie.ids.len());
            if let Some(node) = path.last().and_then(|&last| trie.nodes.get_mut(last)) {
                node.last = here;
            }
            before = bytes;
        }
        trie.close(&mut path, 0);
        trie
    }

    fn close(&mut self, path: &mut Vec<usize>, depth: usize) {
        let end = number(self.nodes.len());
        for node in path.drain(depth.min(path.len())..) {
            self.nodes[node].end = end;
        }
    }

    /// Walks from `start` as far as `step` leads, and gives states with the tokens that lead to them to `found`. Returns how many
    /// nodes it looked at.
    pub(super) fn walk(
        &self,
        start: u32,
        step: impl Fn(u32, u8) -> Option<u32>,
        mut found: impl FnMut(u32, &[i32]),
    ) -> usize {
        let (mut path, mut at, mut looked) = (vec![start], 0, 0);
        while let Some(node) = self.nodes.get(at) {
            looked += 1;
            let depth = node.depth as usize;
            path.truncate(depth);
            match step(path[depth - 1], node.byte) {
                Some(state) => {
                    path.push(state);
                    if node.first < node.last {
                        found(state, &self.ids[node.first as usize..node.last as usize]);
                    }
                    at += 1;
                }
                None => at = node.end as usize,
            }
        }
        looked
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).expect("a vocabulary has fewer than 2^32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_what_a_walk_over_every_token_finds() {
        let words = ["a", "ab", "abc", "b", "ba", "bab", "ab", "c", "ccc"];
        let tokens = words.iter().zip(0..).map(|(word, id)| (word.as_bytes(), id)).collect();
        let trie = Trie::new(tokens);
        // Counts letters, and stops at a third or at "ba".
        let step = |state: u32, byte: u8| (state < 2 && !(state == 1 && byte == b'a')).then_some(state + 1);
        let mut found = Vec::new();
        let looked = trie.walk(0, step, |state, ids| found.extend(ids.iter().map(|id| (state, *id))));
        found.sort_unstable();
        assert_eq!(found, [(1, 0), (1, 3), (1, 7), (2, 1), (2, 6)]);
        assert_eq!(looked, 8, "what begins with something dead is not looked at");
    }
}
