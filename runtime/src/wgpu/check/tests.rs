//! Broken plans.

use dlx_ir::{DType, EntryKind, Value};

use super::super::plan::{
    Access, Binding, Dispatch, Entry, Feature, Kernel, Plan, Probe, Profile, Range, State, Variant,
};

/// Bytes of the words of a call.
const CALL: u64 = super::CALL_WORDS as u64 * 4;
/// Bytes of the weights section.
const WEIGHTS: u64 = 4096;

fn range(offset: u64, bytes: u64) -> Range {
    Range { offset, bytes }
}

/// A plan with one of everything.
fn plan() -> Plan {
    let bindings = [
        (Access::Uniform, Binding::Input(range(0, CALL))),
        (Access::Read, Binding::Input(range(256, 16))),
        (Access::Read, Binding::Weight(range(64, 1024))),
        (Access::ReadWrite, Binding::Arena(range(0, 256))),
        (Access::ReadWrite, Binding::Arena(range(256, 64))),
        (Access::ReadWrite, Binding::State(0)),
        (Access::ReadWrite, Binding::Output(range(0, 48))),
    ];
    let variant = |needs: &[Feature]| Variant { needs: needs.into(), shader: 0, groups: [1, 2, 3] };
    let dispatches = vec![Dispatch { kernel: 0, node: 0, bindings: bindings.iter().map(|b| b.1).collect() }];
    let entry = |kind: EntryKind, inputs: &[Range], results: &[Range]| Entry {
        name: format!("{kind:?}"),
        kind,
        rows: 4,
        inputs: inputs.into(),
        results: results.into(),
        dispatches: dispatches.clone(),
        values: Vec::new(),
        first_layer: None,
    };
    let mut step = entry(EntryKind::Step, &[range(0, CALL), range(2304, 16), range(2560, 16)], &[]);
    step.values = vec![Probe { name: "x".into(), after: 1, value: range(0, 64) }];
    step.first_layer = Some(0);
    Plan {
        profile: Profile {
            name: "plain".into(),
            max_binding: 1 << 20,
            max_buffer: 1 << 21,
            max_invocations: 256,
            max_workgroup_storage: 16 << 10,
            max_workgroups: 65_535,
            max_storage_buffers: 8,
        },
        shaders: vec![String::new()],
        kernels: vec![Kernel {
            role: "linear".into(),
            shape: "q4".into(),
            bindings: bindings.iter().map(|b| b.0).collect(),
            variants: vec![variant(&[Feature::F16]), variant(&[])],
        }],
        inputs: 8192,
        arena: 512,
        outputs: 1024,
        states: vec![State { name: "hidden".into(), bytes: 256, cache: false }],
        hidden: Some(0),
        entries: vec![
            step,
            entry(EntryKind::Head, &[range(3072, CALL), range(5376, 16)], &[range(0, 16), range(256, 48)]),
            entry(EntryKind::Logits, &[range(5632, CALL), range(7936, 16)], &[range(512, 128)]),
        ],
        max_seq: 64,
        prefix_unit: Some(1),
        vocab: 8,
    }
}

/// Breaks a sound plan and says what is wrong with it.
#[track_caller]
fn refused(message: &str, break_it: impl FnOnce(&mut Plan)) {
    let mut broken = plan();
    break_it(&mut broken);
    let error = broken.check(WEIGHTS).unwrap_err();
    assert!(error.contains(message), "{error}");
}

#[test]
fn a_sound_plan_is_accepted() {
    plan().check(WEIGHTS).unwrap();
    let text = serde_json::to_string(&plan()).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan());
    assert_eq!(plan().summary().weight_bytes, 1024);
}

#[test]
fn indices_name_something() {
    refused("there is no kernel 7", |p| p.entries[0].dispatches[0].kernel = 7);
    refused("there is no shader 1", |p| p.kernels[0].variants[1].shader = 1);
    refused("there is no such state", |p| p.entries[1].dispatches[0].bindings[5] = Binding::State(1));
    refused("a state that it does not have", |p| p.hidden = Some(1));
    refused("7 are wanted", |p| p.entries[0].dispatches[0].bindings.truncate(6));
    refused("no step entry", |p| drop(p.entries.remove(0)));
    refused("same number of rows", |p| p.entries.push(p.entries[0].clone()));
    refused("runs everywhere", |p| drop(p.kernels[0].variants.pop()));
    refused("runs everywhere", |p| p.kernels[0].variants.clear());
}

#[test]
fn ranges_lie_in_their_buffers() {
    let bind = |at: usize, binding| move |p: &mut Plan| p.entries[0].dispatches[0].bindings[at] = binding;
    for (offset, bytes) in [(256, 16384), (256, 0), (256, 6), (128, 16), (u64::MAX - 255, 256), (0, u64::MAX - 3)] {
        refused("binding 3", bind(3, Binding::Arena(range(offset, bytes))));
        refused("binding 1", bind(1, Binding::Input(range(offset, bytes))));
        refused("binding 6", bind(6, Binding::Output(range(offset, bytes))));
    }
    refused("binding 2", bind(2, Binding::Weight(range(WEIGHTS, 64))));
    refused("binding 2", bind(2, Binding::Weight(range(32, 64))));
    refused("larger than 16384", |p| {
        p.inputs = 1 << 16;
        p.entries[0].dispatches[0].bindings[0] = Binding::Input(range(0, 1 << 15));
    });
    refused("larger than 1048576", |p| {
        p.arena = 1 << 21;
        p.entries[0].dispatches[0].bindings[3] = Binding::Arena(range(512, 1 << 20 | 4));
    });
    refused("weights", |p| p.entries[1].dispatches[0].bindings[2] = Binding::Weight(range(128, 1024)));
}

#[test]
fn buffers_are_used_as_they_may_be() {
    refused("may not be used so", |p| p.kernels[0].bindings[2] = Access::ReadWrite);
    refused("may not be used so", |p| p.kernels[0].bindings[3] = Access::Read);
    refused("may not be used so", |p| p.kernels[0].bindings[1] = Access::ReadWrite);
    refused("same bytes twice", |p| p.entries[0].dispatches[0].bindings[4] = Binding::Arena(range(0, 64)));
    refused("same bytes twice", |p| p.entries[0].dispatches[0].bindings[6] = Binding::State(0));
    refused("exceed 4", |p| p.profile.max_storage_buffers = 4);
}

#[test]
fn sizes_are_sane() {
    refused("make no sense", |p| p.profile.max_binding = 1 << 40);
    refused("make no sense", |p| p.profile.max_invocations = 0);
    refused("workgroups exceed", |p| p.kernels[0].variants[0].groups = [1, 0, 1]);
    refused("workgroups exceed", |p| p.kernels[0].variants[0].groups = [65_536, 1, 1]);
    refused("activation buffer", |p| p.arena = u64::MAX);
    refused("output buffer", |p| p.outputs = 1022);
    refused("cannot be bound", |p| p.states[0].bytes = 0);
    refused("cannot be bound", |p| p.states[0].bytes = (1 << 20) + 4);
    refused("parameters", |p| p.entries[0].rows = 65);
    refused("it has 0 rows", |p| p.entries[1].rows = 0);
    refused("are no 64 rows", |p| (p.states[0].cache, p.states[0].bytes) = (true, 260));
    refused("no unit", |p| p.prefix_unit = Some(0));
    refused("vocabulary", |p| p.vocab = 1);
    refused("results", |p| p.vocab = 1 << 20);
    refused("bindings are too many", |p| p.kernels[0].bindings = vec![Access::Read; 65]);
}

#[test]
fn parameters_and_results_have_their_places() {
    refused("parameters", |p| p.entries[0].inputs[0].bytes = 16);
    refused("parameters", |p| p.entries[0].inputs.truncate(2));
    refused("parameters", |p| p.entries[0].inputs[2].offset = 2048);
    refused("parameters", |p| p.entries[0].inputs[2] = range(256, 16));
    refused("results", |p| p.entries[1].results[1].bytes = 44);
    refused("results", |p| p.entries[2].results[0].offset = 1 << 60);
    refused("also those", |p| p.entries[1].inputs = p.entries[0].inputs[..2].to_vec());
    refused("self-test", |p| p.entries[0].first_layer = Some(1));
    refused("value %x", |p| p.entries[0].values[0].after = 2);
    refused("value %x", |p| p.entries[0].values[0].value = range(0, 62));
    refused("value %x", |p| p.entries[0].values[0].value = range(512, 64));
    refused("value %y", |p| {
        p.entries[0].values.push(Probe { name: "y".into(), after: 0, value: range(0, 64) });
    });
}

#[test]
fn a_program_beyond_rows_or_with_other_values_is_refused() {
    let edited = |nodes: &str, edit: &dyn Fn(&mut Vec<Probe>)| {
        let text = format!(
            "module @m {{
               weight @w: f32[8, 4] @n16 = stored {{offset=0, bytes=256}}
               weight @one: f32[8, 1] @n16 = stored {{offset=256, bytes=64}}
               state @hidden: f32[16, 4]
               graph @step_4(%ids: i32[4], %pos: i32[4], %spans: i32[64, 5]) -> () {{
                 %x = embed %ids, @w: f32[4, 4]
                 %c = embed %ids, @one: f32[4, 1]
                 {nodes}
                 store_rows %x, @hidden
                 return
               }}
             }}"
        );
        let module = dlx_ir::parse(&text).unwrap();
        dlx_ir::verify(&module).unwrap();
        let mut plan = plan();
        plan.max_seq = 0;
        plan.entries.truncate(1);
        plan.entries[0].name = "step_4".into();
        plan.entries[0].dispatches.clear();
        let values = module.graphs[0].values.iter().map(|(_, v)| v).filter(|v| v.ty.dtype == DType::F32);
        let probe = |v: &Value| Probe { name: v.name.clone(), after: 0, value: range(0, v.ty.bytes().unwrap() as u64) };
        plan.entries[0].values = values.map(probe).collect();
        edit(&mut plan.entries[0].values);
        plan.check_program(&module)
    };
    let checked = |nodes: &str| edited(nodes, &|_| {});
    checked("%z = add %x, %x: f32[4, 4]").unwrap();
    for nodes in ["%z = add %x, %c: f32[4, 4]", "%z = mul %c, %x: f32[4, 4]"] {
        assert!(checked(nodes).unwrap_err().contains("not of the result's type"), "{nodes}");
    }
    let error = checked("%z = reshape %x {dims=[4, 2, 2]}: f32[4, 2, 2]").unwrap_err();
    assert!(error.contains("%z of the program is f32[4, 2, 2], not rows"), "{error}");
    let looks = |edit: &dyn Fn(&mut Vec<Probe>)| edited("%z = add %x, %x: f32[4, 4]", edit).unwrap_err();
    let edits: [fn(&mut Vec<Probe>); 3] = [|v| v[2].name = "x".into(), |v| v[2].value.bytes = 16, |v| v.truncate(2)];
    for edit in edits {
        let error = looks(&edit);
        assert!(error.contains("%z of the program is not where its plan looks for it"), "{error}");
    }
    let error = looks(&|v| v.push(Probe { name: "more".into(), ..v[2].clone() }));
    assert!(error.contains("%more is no value of the program"), "{error}");
}
