{# What a thread knows of itself, and a function for each of `folds` that folds a value of `type` per thread into one that
   every thread gets, for any subgroup size of 4 and more and any mapping of threads to lanes. THREADS is a multiple of
   16. #}
struct Thread {
    @builtin(local_invocation_index) index: u32,
{% if subgroups %}
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
{% endif %}
}
{% for fold in folds %}
{% set name = "workgroup_" ~ fold %}

fn {{ name }}_of(a: {{ type }}, b: {{ type }}) -> {{ type }} {
    return {{ "max(a, b)" if fold == "max" else "a + b" }};
}

var<workgroup> {{ name }}_parts: array<{{ type }}, {{ "THREADS / 4u" if subgroups else "THREADS" }}>;

fn {{ name }}(value: {{ type }}, thread: Thread) -> {{ type }} {
{% if subgroups %}
    let part = {{ "subgroupMax" if fold == "max" else "subgroupAdd" }}(value);
    workgroupBarrier();
    if (thread.lane == 0u) {
        {{ name }}_parts[thread.subgroup] = part;
    }
{% else %}
    workgroupBarrier();
    {{ name }}_parts[thread.index] = value;
    workgroupBarrier();
    if (thread.index < 16u) {
        var part = value;
        for (var i = thread.index + 16u; i < THREADS; i += 16u) {
            part = {{ name }}_of(part, {{ name }}_parts[i]);
        }
        {{ name }}_parts[thread.index] = part;
    }
{% endif %}
    workgroupBarrier();
    var all = {{ name }}_parts[0];
    for (var i = 1u; i < {{ "thread.subgroups" if subgroups else "16u" }}; i++) {
        all = {{ name }}_of(all, {{ name }}_parts[i]);
    }
    return all;
}
{% endfor %}

