{# Every shader: what it is told about a call, its buffers and constants, and then its kernel. The words of `Call` are
   CALL_WORDS of the runtime. #}
{% if f16 %}
enable f16;
{% endif %}
struct Span {
    first: u32,
    end: u32,
    base: u32,
    at_row: u32,
    from_row: u32,
    visible: u32,
    unused0: u32,
    unused1: u32,
}
struct Call {
    live: u32,
    spans: u32,
    unused0: u32,
    unused1: u32,
    span: array<Span, MAX_SPANS>,
}
@group(0) @binding(0) var<uniform> call: Call;
{% for access, name, element in buffers %}
@group(0) @binding({{ loop.index }}) var<storage, {{ access }}> {{ name }}: array<{{ element }}>;
{% endfor %}
{% for name, type, value in constants %}
const {{ name }}: {{ type }} = {{ value }};
{% endfor %}

{% include kernel %}
