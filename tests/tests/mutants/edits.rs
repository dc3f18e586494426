//! Edits of one section: of bytes, of JSON trees, of IR text, and of the section table.

use serde_json::Value;

use crate::container::Sections;
use crate::rng::Rng;

/// Numbers at which something overflows, wraps, allocates or divides by zero.
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "2",
    "3",
    "5",
    "7",
    "8",
    "16",
    "63",
    "64",
    "65",
    "127",
    "192",
    "256",
    "511",
    "512",
    "513",
    "4096",
    "65535",
    "65536",
    "1048576",
    "1048577",
    "16777216",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "1099511627776",
    "1125899906842624",
    "1152921504606846976",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "-1",
    "-2147483648",
    "0.5",
    "1e-45",
    "1e-6",
    "1e38",
    "1e39",
    "1e300",
    "1e999",
    "-0.0",
];

/// How many of them are whole and fit 64 bits.
const WHOLE: usize = 33;

/// Changes some bytes: flips, inserts, removes, copies.
pub(crate) fn bytes(rng: &mut Rng, data: &mut Vec<u8>) -> String {
    for _ in 0..1 + rng.below(3) {
        let at = rng.below(data.len());
        let len = (1 + rng.below(12)).min(data.len().saturating_sub(at));
        match rng.below(5) {
            0 if !data.is_empty() => data[at] ^= 1 << rng.below(8),
            1 => data.insert(at, *rng.of(b"0123456789{}[]\",:%@=. -ex\n\0\xff")),
            2 => drop(data.drain(at..at + len)),
            3 => {
                let from = rng.below(data.len().saturating_sub(len));
                let piece = data[from..from + len].to_vec();
                data.splice(at..at + len, piece);
            }
            _ => {
                let piece = rng.of::<&str>(NUMBERS).as_bytes().to_vec();
                data.splice(at..at + len.min(3), piece);
            }
        }
    }
    "bytes".into()
}

/// Changes one place of a JSON text.
pub(crate) fn json(rng: &mut Rng, text: &mut Vec<u8>) -> String {
    let Ok(mut tree) = serde_json::from_slice::<Value>(text) else { return bytes(rng, text) };
    let mut at = &mut tree;
    let mut path = String::new();
    loop {
        let deeper = rng.below(12) > 0;
        let len = match at {
            Value::Array(items) => items.len(),
            Value::Object(map) => map.len(),
            _ => 0,
        };
        if len == 0 || !deeper {
            break;
        }
        let i = rng.below(len);
        if rng.below(16) == 0 {
            let what = json_container(rng, at, i);
            *text = serde_json::to_vec(&tree).unwrap();
            return format!("{path}: {what}");
        }
        path = match at {
            Value::Array(_) => format!("{path}[{i}]"),
            Value::Object(map) => format!("{path}.{}", map.keys().nth(i).unwrap()),
            _ => unreachable!(),
        };
        at = match at {
            Value::Array(items) => &mut items[i],
            Value::Object(map) => map.values_mut().nth(i).unwrap(),
            _ => unreachable!(),
        };
    }
    *at = json_value(rng, at);
    let what: String = at.to_string().chars().take(60).collect();
    *text = serde_json::to_vec(&tree).unwrap();
    format!("{path} = {what}")
}

/// Removes, doubles or exchanges members.
fn json_container(rng: &mut Rng, at: &mut Value, i: usize) -> String {
    match at {
        Value::Array(items) => {
            let j = rng.below(items.len());
            match rng.below(4) {
                0 => drop(items.remove(i)),
                1 => items.insert(j, items[i].clone()),
                // Many, but no more than the mutator itself has memory for.
                2 => {
                    let times =
                        ((4 << 20) / items.iter().map(|v| v.to_string().len() + 1).sum::<usize>()).clamp(2, 300);
                    *items = items.iter().cycle().take(items.len() * times).cloned().collect();
                }
                _ => items.swap(i, j),
            }
        }
        Value::Object(map) => {
            let keys: Vec<String> = map.keys().cloned().collect();
            let (a, b) = (keys[i].clone(), rng.of(&keys).clone());
            match rng.below(3) {
                0 => drop(map.shift_remove(&a)),
                1 => drop(map.insert(format!("{a}x"), map[&a].clone())),
                _ => {
                    let (va, vb) = (map[&a].clone(), map[&b].clone());
                    map.insert(a, vb);
                    map.insert(b, va);
                }
            }
        }
        _ => {}
    }
    "members".into()
}

fn json_value(rng: &mut Rng, old: &Value) -> Value {
    let number = |rng: &mut Rng| serde_json::from_str(rng.of::<&str>(NUMBERS)).unwrap_or(Value::Null);
    // Most keep the type, or hardly one would get further than reading.
    match (if rng.below(10) < 7 { 4 } else { rng.below(10) }, old) {
        (4, Value::Bool(b)) => Value::Bool(!b),
        (4, Value::Number(n)) if n.is_u64() && rng.below(2) == 0 => {
            serde_json::from_str(rng.of::<&str>(&NUMBERS[..WHOLE])).unwrap_or(Value::Null)
        }
        (4, Value::String(s)) if s.contains('\n') && rng.below(2) == 0 => {
            let mut lines: Vec<String> = s.lines().map(Into::into).collect();
            let i = rng.below(lines.len());
            lines[i] = with_number(rng, &lines[i]);
            Value::String(lines.join("\n"))
        }
        (0, _) => Value::Null,
        (1, _) => Value::Bool(rng.below(2) == 0),
        (2, _) => Value::Array((0..rng.below(5)).map(|_| number(rng)).collect()),
        (3, _) => Value::Array(vec![number(rng); 100_000]),
        (4, Value::Number(n)) => {
            let near = n.as_i64().map(|n| n.saturating_add([1, -1, n][rng.below(3)]));
            near.map_or_else(|| number(rng), Value::from)
        }
        (4 | 5, Value::String(s)) => {
            let mut text = s.clone().into_bytes();
            bytes(rng, &mut text);
            Value::String(String::from_utf8_lossy(&text).into_owned())
        }
        (6, Value::String(_)) => {
            let words = ["full", "causal", "block-causal", "none", "prefix", "dual", "commit-block", "commit-between"];
            let more = ["random", "margin", "factor", "timesteps", "linear", "even", "step", "cpu", "wgpu", "", "%s"];
            Value::String((*rng.of::<&str>(&[&words[..], &more[..]].concat())).into())
        }
        (7, Value::String(s)) => Value::String(s.repeat(1000)),
        _ => number(rng),
    }
}

/// Changes a program in a way that its author could have written.
pub(crate) fn program(rng: &mut Rng, text: &mut Vec<u8>) -> String {
    let Ok(source) = String::from_utf8(text.clone()) else { return bytes(rng, text) };
    let mut lines: Vec<String> = source.lines().map(Into::into).collect();
    // Some mutants need luck to find a line with what they change.
    for _ in 0..50 {
        let i = rng.below(lines.len());
        let before = lines[i].clone();
        let kind = rng.below(17);
        match kind {
            0 => drop(lines.remove(i)),
            1 => lines.insert(i, before.clone()),
            2 if i + 1 < lines.len() => lines.swap(i, i + 1),
            3 => lines[i] = renamed_operand(rng, &lines, i),
            4 | 5 => lines[i] = with_number(rng, &before),
            6 => lines[i] = swapped_operands(rng, &before),
            7 => {
                let ops =
                    ["add", "mul", "silu", "embed", "take_rows", "store_rows", "rope", "rms_norm", "linear", "softmax"];
                let words: Vec<&str> = before.split(' ').collect();
                let from = words.iter().find(|w| ops.contains(w)).copied().unwrap_or("linear");
                lines[i] = before.replacen(from, rng.of::<&str>(&ops), 1);
            }
            8 => {
                let masks = ["full", "causal", "block_causal:1", "block_causal:8", "block_causal:4294967295"];
                if let Some(at) = before.find("mask=") {
                    let end = before[at..].find([',', '}']).map_or(before.len(), |e| at + e);
                    lines[i] = format!("{}mask={}{}", &before[..at], rng.of::<&str>(&masks), &before[end..]);
                }
            }
            9 => return renamed_value(rng, &source, text),
            10 => lines[i] = format!("  ; nothing\n {}  ", before.replace(", ", " ,  ")),
            11 => return doubled_graph(rng, &source, text),
            12 => {
                let j = rng.below(lines.len());
                lines[i] = lines[j].clone();
            }
            13 => return bytes(rng, text),
            // The same in every entry, which must be alike.
            _ => {
                let old = core(&before).to_owned();
                let new = match kind {
                    14 => swapped_operands(rng, &old),
                    15 => with_number(rng, &old),
                    _ => core(&renamed_operand(rng, &lines, i)).to_owned(),
                };
                if old.len() > 4 {
                    lines = source.replace(&old, &new).lines().map(Into::into).collect();
                }
            }
        }
        let after = lines.join("\n");
        if after != source.trim_end() {
            *text = after.into_bytes();
            return format!("program {kind} at line {}: {}", i + 1, before.trim().chars().take(90).collect::<String>());
        }
    }
    bytes(rng, text)
}

/// A node without its results, types and slots: what it has in common with that of other entries.
fn core(line: &str) -> &str {
    let from = line.find(" = ").map_or(0, |i| i + 3);
    let to = line.rfind("}: ").map_or_else(|| line.find(": f32[").unwrap_or(line.len()), |i| i + 1);
    line.get(from..to).unwrap_or(line)
}

/// Byte ranges of the names that begin with a sigil.
fn names(line: &str, sigil: &[char]) -> Vec<(usize, usize)> {
    let starts = line.char_indices().filter(|(_, c)| sigil.contains(c)).map(|(i, _)| i);
    let end = |i: usize| line[i + 1..].find([',', ' ', ':', ')', '(']).map_or(line.len(), |e| i + 1 + e);
    starts.map(|i| (i, end(i))).collect()
}

/// Another name of the same file in the place of one.
fn renamed_operand(rng: &mut Rng, lines: &[String], i: usize) -> String {
    let line = &lines[i];
    let places = names(line, &['%', '@']);
    // A near line: most likely of the same graph.
    let near = i.saturating_sub(12)..(i + 12).min(lines.len());
    let other = &lines[near.start + rng.below(near.len())];
    let others = names(other, &['%', '@']);
    if places.is_empty() || others.is_empty() {
        return line.clone();
    }
    let ((from, to), (a, b)) = (*rng.of(&places), *rng.of(&others));
    format!("{}{}{}", &line[..from], &other[a..b], &line[to..])
}

fn swapped_operands(rng: &mut Rng, line: &str) -> String {
    let places = names(line, &['%', '@']);
    if places.len() < 2 {
        return line.into();
    }
    let i = rng.below(places.len() - 1);
    let j = i + 1 + rng.below(places.len() - 1 - i);
    let ((a, b), (c, d)) = (places[i], places[j]);
    format!("{}{}{}{}{}", &line[..a], &line[c..d], &line[b..c], &line[a..b], &line[d..])
}

fn with_number(rng: &mut Rng, line: &str) -> String {
    let digits: Vec<usize> = line
        .char_indices()
        .filter(|(i, c)| c.is_ascii_digit() && line[..*i].ends_with([' ', '=', '[', '(', '_']))
        .map(|(i, _)| i)
        .collect();
    if digits.is_empty() {
        return line.into();
    }
    let at = *rng.of(&digits);
    let end =
        line[at..].find(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '-').map_or(line.len(), |e| at + e);
    let near = line[at..end].parse::<i64>().ok().filter(|_| rng.below(2) == 0);
    let number = match near {
        Some(n) => (n + [1, -1, 64, -64, n][rng.below(5)]).to_string(),
        None => (*rng.of::<&str>(NUMBERS)).into(),
    };
    format!("{}{number}{}", &line[..at], &line[end..])
}

/// Gives a value another name everywhere, which means the same.
fn renamed_value(rng: &mut Rng, source: &str, text: &mut Vec<u8>) -> String {
    let all = names(source, &['%']);
    let (a, b) = *rng.of(&all);
    let name = source[a..b].to_owned();
    let mut out = String::new();
    let mut at = 0;
    for (from, to) in all {
        out += &source[at..from];
        out += if source[from..to] == name { "%renamed.value" } else { &source[from..to] };
        at = to;
    }
    out += &source[at..];
    *text = out.into_bytes();
    format!("renamed {name}")
}

/// A graph once more, perhaps under another name.
fn doubled_graph(rng: &mut Rng, source: &str, text: &mut Vec<u8>) -> String {
    let starts: Vec<usize> = source.match_indices("  graph @").map(|(i, _)| i).collect();
    let at = *rng.of(&starts);
    let end = source[at..].find("\n  }\n").map_or(source.len(), |e| at + e + 5);
    let graph = &source[at..end];
    let name = &graph[9..graph.find('(').unwrap_or(9)];
    let new = *rng.of::<&str>(&["step_5", "head_9", "logits_9", "other", "step", "head"]);
    *text = format!("{}{}\n{}", &source[..at], graph.replacen(name, new, 1), &source[at..]).into_bytes();
    format!("{name} once more as {new}")
}

/// Changes the list of sections.
pub(crate) fn table(rng: &mut Rng, sections: &mut Sections) -> String {
    let (i, j) = (rng.below(sections.len()), rng.below(sections.len()));
    let name = sections[i].0.clone();
    match rng.below(6) {
        0 => drop(sections.remove(i)),
        1 => sections.swap(i, j),
        2 => {
            let other = sections[j].0.clone();
            sections[j].0 = name.clone();
            sections[i].0 = other;
        }
        3 => sections[i].1 = sections[j].1.clone(),
        4 => {
            sections[i].0 =
                (*rng.of::<&str>(&["program:gpu", "x", "program:", "plan:cpu", "manifest2", "weights2"])).into()
        }
        _ => sections.push((format!("{name}.old"), sections[j].1.clone())),
    }
    format!("table: {name} and {}", sections.get(j).map_or("", |s| &s.0))
}
