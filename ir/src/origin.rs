//! Where a weight or a node comes from, in words of whoever made the model: names of source tensors or foreign nodes.
//!
//! Invariant: no name twice, in the order in which they came. An origin explains and decides nothing: no pass, verifier
//! or executor may depend on it.

use crate::name::quoted;
use std::fmt;
use std::sync::Arc;

/// Most names that an origin keeps; a node that is made of more is known by the first of them.
pub const MAX_ORIGIN: usize = 16;

/// Names of source tensors or of nodes of a foreign graph. Empty, and not printed, where nobody said anything.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Origin(Vec<Arc<str>>);

impl Origin {
    /// The origin of these names.
    pub fn new(names: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Self {
        let mut origin = Origin::default();
        names.into_iter().for_each(|n| origin.add(n.into()));
        origin
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names, in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(|n| &**n)
    }

    /// Adds the names of another origin.
    pub fn join(&mut self, other: &Origin) {
        other.0.iter().for_each(|n| self.add(n.clone()));
    }

    fn add(&mut self, name: Arc<str>) {
        if self.0.len() < MAX_ORIGIN && !self.0.contains(&name) {
            self.0.push(name);
        }
    }
}

impl fmt::Display for Origin {
    /// As it stands behind a weight or node: nothing, or ` from "a", "b"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.0.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { " from " } else { ", " }, quoted(name))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{parse, verify};

    #[test]
    fn names_are_kept_once_and_in_order() {
        let mut origin = Origin::new(["b", "a", "b"]);
        origin.join(&Origin::new(["c", "a"]));
        assert!(origin.names().eq(["b", "a", "c"]));
        assert_eq!(origin.to_string(), r#" from "b", "a", "c""#);
        assert_eq!(Origin::default().to_string(), "");
        let many = Origin::new((0..100).map(|i| i.to_string()));
        assert_eq!(many.names().len(), MAX_ORIGIN);
        assert_eq!(many.names().next(), Some("0"));
    }

    #[test]
    fn text_round_trips() {
        let text = r#"module @m {
  weight @a: f32[2] from "layers/0/a"
  weight @b: f32[2] = cast @a {to=f32} from "a", "q\"uote\n"
  weight @c: f32[1] = [1] from "c"
  weight @d: f32[1] = stored {offset=0, bytes=4} from "%"
  weight @e: f32[1]
  state @s: f32[4, 2]

  graph @g(%x: f32[4, 2]) -> (f32[4, 2], f32[4, 2]) {
    %y = silu %x: f32[4, 2] at 64 from "Silu_1", ""
    %z = silu %y: f32[4, 2]
    store_rows %x, @s from "Store;2"
    return %y, %z
  }
}
"#;
        let module = parse(text).unwrap();
        assert_eq!(module.to_string(), text);
        let graph = &module.graphs[0];
        let names = |i: usize| graph.nodes[i].origin.names().collect::<Vec<_>>();
        assert_eq!([names(0), names(1), names(2)], [vec!["Silu_1", ""], vec![], vec!["Store;2"]]);
        assert_eq!(module.weights[module.weight("b").unwrap()].origin, Origin::new(["a", "q\"uote\n"]));
    }

    #[test]
    fn errors_name_the_origin() {
        let text = |node: &str, weight: &str| {
            format!("module @m {{ weight @w: f32[2]{weight} graph @g(%x: i32[2]) -> () {{ {node} return }} }}")
        };
        let fails = |text: String| verify(&parse(&text).unwrap()).map(|_| ()).unwrap_err()[0].to_string();
        let node = fails(text("%y = silu %x: i32[2] from \"Node 7\"", ""));
        assert!(node.starts_with("graph @g: %y = silu %x: i32[2] from \"Node 7\": operand is"), "{node}");
        let weight = fails(text("", " = [1] from \"const_3\""));
        assert!(weight.starts_with("weight @w: f32[2] = [1] from \"const_3\": 1 elements"), "{weight}");
        for (bad, message) in [
            (" from".to_owned(), "expected a quoted name"),
            (" from x".to_owned(), "expected a quoted name, found `x`"),
            (" from \"x\", y".to_owned(), "expected a quoted name, found `y`"),
            (" from \"x".to_owned(), "a quoted name without its closing quote"),
            (format!(" from {}", vec!["\"n\""; MAX_ORIGIN + 1].join(", ")), "an origin has at most 16 names"),
        ] {
            let error = parse(&text("", &bad)).unwrap_err().to_string();
            assert!(error.contains(message), "{bad}: {error}");
        }
    }
}
