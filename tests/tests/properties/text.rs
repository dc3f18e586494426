//! Text: printing round-trips, and no text makes the parser, the verifier, a pass or the evaluator panic.

use dlx_ir::{DType, Data, Dim, Evaluator, Module, Tensor, VerifiedModule, parse, verify};
use dlx_passes::{PASSES, parse_pipeline, run_pipeline};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::generate::{module, weight};
use crate::{after, choices, config};

/// Words that make random text more likely to get far.
const WORDS: &[&str] = &[
    "module",
    "weight",
    "state",
    "graph",
    "return",
    "@m",
    "@w",
    "%x",
    "%y",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    ":",
    ",",
    "=",
    "->",
    "at",
    "f32",
    "f16",
    "i32",
    "bool",
    "q4g64",
    "q8m",
    "l16",
    "T",
    "0",
    "1",
    "4",
    "64",
    "4294967296",
    "18446744073709551615",
    "stored",
    "offset",
    "bytes",
    "silu",
    "linear",
    "rope",
    "attention",
    "kv_write",
    "concat",
    "quantize",
    "head_dim",
    "mask",
    "block_causal",
    "n",
    "norm",
    "bias",
    "post",
    "swiglu",
    "add",
    "eps",
    "1e-6",
    "-1",
    "NaN",
    "\"",
    "\\",
    ";",
    "\n",
    "%\"",
    "@\"a b\"",
    "ß",
    "\u{0}",
];

/// A change of a text.
#[derive(Clone, Debug)]
enum Edit {
    Remove(Index, usize),
    Insert(Index, usize),
    Replace(Index, usize),
    RepeatLine(Index),
    Swap(Index, Index),
    Truncate(Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let word = 0..WORDS.len();
    prop_oneof![
        (any::<Index>(), 1..12usize).prop_map(|(i, n)| Edit::Remove(i, n)),
        (any::<Index>(), word.clone()).prop_map(|(i, w)| Edit::Insert(i, w)),
        (any::<Index>(), word).prop_map(|(i, w)| Edit::Replace(i, w)),
        any::<Index>().prop_map(Edit::RepeatLine),
        (any::<Index>(), any::<Index>()).prop_map(|(i, j)| Edit::Swap(i, j)),
        any::<Index>().prop_map(Edit::Truncate),
    ]
}

/// Tokens of a text: words, numbers, single characters.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let plain = |c: char| c.is_alphanumeric() || "_.-%@/".contains(c);
    for c in text.chars() {
        match tokens.last_mut() {
            Some(last) if plain(c) && last.chars().all(plain) => last.push(c),
            _ => tokens.push(c.to_string()),
        }
    }
    tokens
}

fn apply(text: &str, edits: &[Edit]) -> String {
    let mut tokens = tokens(text);
    for edit in edits {
        let n = tokens.len();
        if n == 0 {
            break;
        }
        match edit {
            Edit::Remove(i, count) => drop(tokens.drain(i.index(n)..(i.index(n) + count).min(n))),
            Edit::Insert(i, word) => tokens.insert(i.index(n), format!(" {} ", WORDS[*word])),
            Edit::Replace(i, word) => tokens[i.index(n)] = WORDS[*word].into(),
            Edit::RepeatLine(i) => {
                let text = tokens.concat();
                let mut lines: Vec<&str> = text.lines().collect();
                lines.insert(i.index(lines.len()), lines[i.index(lines.len())]);
                tokens = self::tokens(&lines.join("\n"));
            }
            Edit::Swap(i, j) => tokens.swap(i.index(n), j.index(n)),
            Edit::Truncate(i) => tokens.truncate(i.index(n)),
        }
    }
    tokens.concat()
}

/// Everything that may happen to a text: whatever it is, the answer is an error and not a panic.
fn survive(text: &str) -> Result<(), TestCaseError> {
    let Ok(module) = parse(text) else { return Ok(()) };
    let printed = module.to_string();
    let again = parse(&printed).map_err(|e| TestCaseError::fail(format!("{e}\n{printed}")))?;
    prop_assert_eq!(&again.to_string(), &printed);
    if verify(&module).is_err() {
        return Ok(());
    }
    evaluate(&module);
    for pass in PASSES.iter().filter(|p| p.params.is_empty()) {
        if let Err(e) = after(&module, pass.name) {
            prop_assert!(!e.message.contains("invalid IR"), "{e}\n{module}");
        }
    }
    Ok(())
}

/// Runs the graphs of a module whose tensors are small.
fn evaluate(module: &Module) {
    let types = module.graphs.iter().flat_map(|g| g.values.iter()).map(|(_, v)| &v.ty);
    let types = types.chain(module.weights.iter().map(|(_, w)| &w.ty)).chain(module.states.iter().map(|(_, s)| &s.ty));
    let large = |ty: &dlx_ir::Type| {
        ty.dims.iter().filter_map(Dim::fixed).try_fold(1, usize::checked_mul).is_none_or(|n| n > 4096)
    };
    let mut types = types;
    if types.any(large) {
        return;
    }
    let source = |name: &str| {
        let id = module.weight(name).ok_or("no such weight")?;
        Ok(weight(name, module.weights[id].ty.elements().ok_or("no static size")?))
    };
    let mut evaluator = Evaluator::new(module, &source, 1);
    for graph in &module.graphs {
        let argument = |v: &dlx_ir::ValueId| {
            let ty = &graph.values[*v].ty;
            let shape: Vec<usize> = ty.dims.iter().map(|d| d.fixed().unwrap_or(3)).collect();
            let len = shape.iter().product();
            let data = match ty.dtype {
                DType::I32 => Data::I32(vec![2; len]),
                DType::Bool => Data::Bool(vec![true; len]),
                dtype if dtype.is_float() => Data::F32(weight("argument", len)),
                DType::F64 => Data::F64(vec![1.0; len]),
                _ => Data::I64(vec![1; len]),
            };
            Tensor { dtype: ty.dtype, shape, data }
        };
        let arguments: Vec<Tensor> = graph.params.iter().map(argument).collect();
        // Numbers that a type cannot rule out, such as a row beyond a cache, are errors.
        let _ = evaluator.run(&graph.name, &arguments, &mut |_, _| {});
    }
}

proptest! {
    #![proptest_config(config(1000))]

    #[test]
    fn printing_round_trips(choices in choices(120), quoted in "\\PC{0,12}") {
        let mut module = module(&choices);
        module.name = quoted.clone();
        for (_, value) in module.graphs[0].values.iter_mut().take(2) {
            value.name.push_str(&quoted);
        }
        let text = module.to_string();
        let again = parse(&text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        prop_assert_eq!(&again, &module);
        prop_assert_eq!(again.to_string(), text);
        prop_assert!(verify(&module).is_ok());
    }
}

proptest! {
    #![proptest_config(config(20000))]

    #[test]
    fn edited_modules_do_no_harm(
        choices in choices(40),
        planned in any::<bool>(),
        edits in proptest::collection::vec(edit(), 1..4),
    ) {
        let mut module = module(&choices);
        if planned {
            module = after(&module, "plan-memory").unwrap_or(module);
        }
        survive(&apply(&module.to_string(), &edits))?;
    }

    #[test]
    fn word_soup_does_no_harm(words in proptest::collection::vec(0..WORDS.len(), 0..60)) {
        let text: Vec<&str> = words.iter().map(|w| WORDS[*w]).collect();
        survive(&text.join(" "))?;
        survive(&format!("module @m {{ graph @g(%x: f32[4, 8]) -> () {{ {}", text.join(" ")))?;
    }

    #[test]
    fn any_text_does_no_harm(text in any::<String>()) {
        survive(&text)?;
        survive(&format!("module @m {{ weight @w: {text}"))?;
    }

    #[test]
    fn any_pipeline_does_no_harm(words in proptest::collection::vec(0..PASSES.len() + 12, 0..10), junk in ".{0,20}") {
        let others = ["{", "}", "=", ",", " ", "{T=3}", "{rows=2, ban=1}", "{max_seq=8, kv=f16}", "to=q8", "T", "ß", ""];
        let text: String = words.iter().map(|w| PASSES.get(*w).map_or_else(|| others[w - PASSES.len()], |p| p.name)).collect();
        let _ = parse_pipeline(&junk);
        if let Ok(steps) = parse_pipeline(&text) {
            let printed: Vec<String> = steps.iter().map(ToString::to_string).collect();
            let again = parse_pipeline(&printed.join(",")).map_err(|e| TestCaseError::fail(e.to_string()))?;
            let again: Vec<String> = again.iter().map(ToString::to_string).collect();
            prop_assert_eq!(printed, again);
            let module = VerifiedModule::new(module(&[0, 12, 1, 2, 3])).expect("generated modules are valid");
            let _ = run_pipeline(module, &steps, &mut |_, _, _| Ok(()));
        }
    }
}
