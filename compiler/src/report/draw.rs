//! Drawings of a graph: where its boxes and lines stand, with layers that are alike folded into one box, or one of them
//! unfolded between the rest.
//!
//! Invariant: positions follow from the graph alone, in whole pixels; every node is in exactly one box of a drawing.

use std::collections::BTreeSet;

use dagre::graph::{Graph as Layout, GraphOptions};
use dagre::{EdgeLabel, LayoutOptions, NodeLabel};
use dlx_ir::{Graph, Module};
use serde::Serialize;

use super::fold::Layer;

/// Most boxes of a drawing: more cannot be read, and placing them takes seconds.
const MAX_BOXES: usize = 200;
const WIDTH: f64 = 150.0;
const HEIGHT: f64 = 42.0;
/// Most characters of a line in a box.
const MAX_LABEL: usize = 21;

/// What a box stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum What {
    /// The parameter of that place.
    Param(usize),
    /// The node of that place.
    Node(usize),
    /// The node of that place in the layer that is unfolded.
    Inside(usize),
    /// All layers of a group.
    Layers(usize),
    /// Those before the one that is unfolded.
    Before(usize),
    /// Those after it.
    After(usize),
}

/// A box: what it is, two lines of text, its corner and width. The text of layers is made where they are shown.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Square {
    pub(super) what: What,
    pub(super) label: [String; 2],
    pub(super) at: [i64; 2],
}

/// A drawing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Drawing {
    /// Width and height.
    pub(super) size: [i64; 2],
    pub(super) boxes: Vec<Square>,
    /// Points of each line, from what makes a value or writes a state to what reads it; and whether it is a state.
    pub(super) lines: Vec<(Vec<[i64; 2]>, bool)>,
}

/// Which layer of a group is unfolded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Open {
    First,
    Middle,
    Last,
}

/// A drawing of a graph with all groups folded but, if given, one layer of one. Nothing when there are too many boxes.
pub(super) fn draw(
    module: &Module,
    graph: &Graph,
    groups: &[Vec<Layer>],
    open: Option<(usize, Open)>,
) -> Option<Drawing> {
    let mut whats: Vec<What> = (0..graph.nodes.len()).map(What::Node).collect();
    for (g, group) in groups.iter().enumerate() {
        let at = open.filter(|(which, _)| *which == g).map(|(_, open)| match open {
            Open::First => 0,
            Open::Middle => 1,
            Open::Last => group.len() - 1,
        });
        for (k, layer) in group.iter().enumerate() {
            for (place, node) in layer.nodes.iter().enumerate() {
                whats[*node] = match at {
                    None => What::Layers(g),
                    Some(at) if k < at => What::Before(g),
                    Some(at) if k > at => What::After(g),
                    Some(_) => What::Inside(place),
                };
            }
        }
    }
    let (boxes, of_node) = boxes(graph, &whats);
    (boxes.len() <= MAX_BOXES).then(|| place(boxes, &edges(module, graph, &of_node)))
}

/// The boxes in the order of their first nodes, parameters first, and the box of each node.
fn boxes(graph: &Graph, whats: &[What]) -> (Vec<Square>, Vec<usize>) {
    let square = |what, label: [&str; 2]| Square { what, label: label.map(short), at: [0, 0] };
    let param = |(i, p): (usize, &dlx_ir::ValueId)| square(What::Param(i), ["parameter", &graph.values[*p].name]);
    let mut boxes: Vec<Square> = graph.params.iter().enumerate().map(param).collect();
    let mut of_node = Vec::with_capacity(whats.len());
    for (node, what) in graph.nodes.iter().zip(whats) {
        let single = matches!(what, What::Node(_) | What::Inside(_));
        let known = if single { None } else { boxes.iter().position(|b| b.what == *what) };
        of_node.push(known.unwrap_or_else(|| {
            let roles: Vec<&str> = node.outputs.iter().map(|o| role(&graph.values[*o].name)).collect();
            let label = if single { [node.op.name(), &roles.join(" ")] } else { ["", ""] };
            boxes.push(square(*what, label));
            boxes.len() - 1
        }));
    }
    (boxes, of_node)
}

/// A name without its layer.
pub(super) fn role(name: &str) -> &str {
    match name.split_once('.') {
        Some((layer, role)) if super::lines::layer_of(name).is_some() && layer.starts_with('l') => role,
        _ => name,
    }
}

fn short(text: &str) -> String {
    if text.chars().count() <= MAX_LABEL {
        return text.to_owned();
    }
    text.chars().take(MAX_LABEL - 1).chain(['…']).collect()
}

/// Which boxes give something to which, and whether through a state.
fn edges(module: &Module, graph: &Graph, of_node: &[usize]) -> BTreeSet<(usize, usize, bool)> {
    let mut makers: Vec<Option<usize>> = vec![None; graph.values.len()];
    for (i, param) in graph.params.iter().enumerate() {
        makers[dlx_ir::Id::index(*param)] = Some(i);
    }
    let mut writers: Vec<Option<usize>> = vec![None; module.states.len()];
    let mut edges = BTreeSet::new();
    for (node, own) in graph.nodes.iter().zip(of_node) {
        for input in &node.inputs {
            let value = input.value().and_then(|v| makers[dlx_ir::Id::index(v)]).map(|maker| (maker, false));
            let state = input.state().and_then(|s| writers[dlx_ir::Id::index(s)]).map(|writer| (writer, true));
            edges.extend(value.or(state).filter(|(from, _)| from != own).map(|(from, state)| (from, *own, state)));
            if let (Some(state), true) = (input.state(), node.op.has_effect()) {
                writers[dlx_ir::Id::index(state)] = Some(*own);
            }
        }
        for out in &node.outputs {
            makers[dlx_ir::Id::index(*out)] = Some(*own);
        }
    }
    edges
}

/// Gives every box and line its place.
fn place(mut boxes: Vec<Square>, edges: &BTreeSet<(usize, usize, bool)>) -> Drawing {
    let mut layout = Layout::with_options(GraphOptions { directed: true, multigraph: true, compound: false });
    for i in 0..boxes.len() {
        layout.set_node(i.to_string(), Some(NodeLabel { width: WIDTH, height: HEIGHT, ..NodeLabel::default() }));
    }
    for (from, to, state) in edges {
        layout.set_edge(from.to_string(), to.to_string(), Some(EdgeLabel::default()), Some(kind(*state)));
    }
    let options = LayoutOptions {
        nodesep: 24.0,
        edgesep: 12.0,
        ranksep: 30.0,
        marginx: 8.0,
        marginy: 8.0,
        ..LayoutOptions::default()
    };
    dagre::layout(&mut layout, Some(options));
    let whole = |x: f64| x.round() as i64;
    let mut size = [0, 0];
    for (i, square) in boxes.iter_mut().enumerate() {
        let node = layout.node(&i.to_string());
        let center = |of: fn(&NodeLabel) -> Option<f64>| node.and_then(of).unwrap_or_default();
        square.at = [whole(center(|n| n.x) - WIDTH / 2.0), whole(center(|n| n.y) - HEIGHT / 2.0)];
        size = [size[0].max(square.at[0] + WIDTH as i64), size[1].max(square.at[1] + HEIGHT as i64)];
    }
    let mut lines = Vec::with_capacity(edges.len());
    for (from, to, state) in edges {
        let points = layout.edge(&from.to_string(), &to.to_string(), Some(kind(*state))).map(|edge| &edge.points);
        let points: Vec<[i64; 2]> = points.into_iter().flatten().map(|p| [whole(p.x), whole(p.y)]).collect();
        size = points.iter().fold(size, |size, p| [size[0].max(p[0]), size[1].max(p[1])]);
        lines.push((points, *state));
    }
    Drawing { size: [size[0] + 8, size[1] + 8], boxes, lines }
}

fn kind(state: bool) -> &'static str {
    if state { "state" } else { "value" }
}

#[cfg(test)]
mod tests {
    use super::super::fold::groups;
    use super::*;

    fn model(layers: usize) -> Module {
        let mut body = String::from("%h = silu %x: f32[2, 4] ");
        let mut last = "h".to_owned();
        for l in 0..layers {
            body.push_str(&format!("%l{l}.a = silu %{last}: f32[2, 4] store_rows %l{l}.a, @kv.{l}.s %l{l}.t = take_rows @kv.{l}.s, %i: f32[2, 4] %l{l}.b = add %l{l}.t, %{last}: f32[2, 4] "));
            last = format!("l{l}.b");
        }
        let states: String = (0..layers).map(|l| format!("state @kv.{l}.s: f32[2, 4] ")).collect();
        let text = format!(
            "module @m {{ {states} graph @g(%x: f32[2, 4], %i: i32[2]) -> (f32[2, 4]) {{ {body}%y = silu %{last}: f32[2, 4] return %y }} }}"
        );
        dlx_ir::parse(&text).unwrap()
    }

    fn whats(drawing: &Drawing) -> Vec<What> {
        drawing.boxes.iter().map(|b| b.what).collect()
    }

    #[test]
    fn folded_layers_are_one_box_and_one_of_them_opens_between_the_rest() {
        let module = model(5);
        let graph = &module.graphs[0];
        let groups = groups(&module, graph);
        let folded = draw(&module, graph, &groups, None).unwrap();
        assert_eq!(whats(&folded), [What::Param(0), What::Param(1), What::Node(0), What::Layers(0), What::Node(21)]);
        let open = draw(&module, graph, &groups, Some((0, Open::Middle))).unwrap();
        assert!(whats(&open).contains(&What::Before(0)) && whats(&open).contains(&What::After(0)));
        assert_eq!(whats(&open).iter().filter(|w| matches!(w, What::Inside(_))).count(), 4);
        let first = draw(&module, graph, &groups, Some((0, Open::First))).unwrap();
        assert!(!whats(&first).contains(&What::Before(0)) && whats(&first).contains(&What::After(0)));
        for drawing in [&folded, &open, &first] {
            // No two boxes overlap, and lines begin and end inside the drawing.
            for (i, a) in drawing.boxes.iter().enumerate() {
                for b in &drawing.boxes[..i] {
                    let apart = (a.at[0] - b.at[0]).abs() >= WIDTH as i64 || (a.at[1] - b.at[1]).abs() >= HEIGHT as i64;
                    assert!(apart, "{a:?} {b:?}");
                }
            }
            assert!(drawing.lines.iter().all(|(points, _)| points.len() > 1));
            let inside = |p: &[i64; 2]| (0..=drawing.size[0]).contains(&p[0]) && (0..=drawing.size[1]).contains(&p[1]);
            assert!(drawing.lines.iter().flat_map(|(points, _)| points).all(inside));
        }
        assert!(open.lines.iter().any(|(_, state)| *state), "what is stored is read again");
        assert_eq!(draw(&module, graph, &groups, None), Some(folded), "the same every time");
    }

    #[test]
    fn what_nobody_could_read_is_not_drawn() {
        let module = model(80);
        assert_eq!(draw(&module, &module.graphs[0], &[], None), None);
    }

    #[test]
    fn long_names_are_cut_at_characters() {
        assert_eq!(short("äöüäöüäöüäöüäöüäöüäöüäöü"), "äöüäöüäöüäöüäöüäöüäö…");
        assert_eq!((role("l3.attn.q"), role("logits"), role("a.b")), ("attn.q", "logits", "a.b"));
    }
}
