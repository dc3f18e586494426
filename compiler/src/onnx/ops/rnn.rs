//! Recurrent layers, unrolled over the steps, whose number is known.

use dlx_ir::{Compare, DType, Unary};

use super::super::call::Call;
use super::super::import::Importer;
use super::super::value::Val;
use super::Row;
use super::product::matmul;

const RNN: &[Row] = &[
    ("", "GRU", |i, c, _| layer(i, c, Kind::Gru)),
    ("", "LSTM", |i, c, _| layer(i, c, Kind::Lstm)),
    ("", "RNN", |i, c, _| layer(i, c, Kind::Rnn)),
];

pub(super) const ROWS: &[&[Row]] = &[RNN];

/// Most steps that are unrolled.
pub(super) const MAX_STEPS: usize = 4096;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Rnn,
    Gru,
    Lstm,
}

impl Kind {
    /// Gates, states, and the activations that are the default.
    fn parts(self) -> (usize, usize, &'static [&'static str]) {
        match self {
            Kind::Rnn => (1, 1, &["Tanh"]),
            Kind::Gru => (3, 1, &["Sigmoid", "Tanh"]),
            Kind::Lstm => (4, 2, &["Sigmoid", "Tanh", "Tanh"]),
        }
    }
}

/// A function of an activation's name, with its parameters.
#[derive(Clone, Debug)]
struct Function {
    name: String,
    alpha: f32,
    beta: f32,
}

impl Function {
    fn apply(&self, i: &mut Importer<'_>, x: &Val) -> Result<Val, String> {
        let (alpha, beta) = (f64::from(self.alpha), f64::from(self.beta));
        match self.name.as_str() {
            "sigmoid" => i.b.unary(Unary::Sigmoid, x),
            "tanh" => i.b.unary(Unary::Tanh, x),
            "relu" => super::elementwise::relu(i, x),
            "softplus" => super::elementwise::softplus(i, x),
            "softsign" => super::elementwise::softsign(i, x),
            "elu" => super::elementwise::elu(i, x, alpha),
            "hardsigmoid" => super::elementwise::hard_sigmoid(i, x, self.alpha, self.beta),
            "affine" => {
                let y = i.b.mul_number(x, alpha)?;
                i.b.add_number(&y, beta)
            }
            "scaledtanh" => {
                let y = i.b.mul_number(x, beta)?;
                let y = i.b.unary(Unary::Tanh, &y)?;
                i.b.mul_number(&y, alpha)
            }
            "leakyrelu" | "thresholdedrelu" => {
                let leaky = self.name == "leakyrelu";
                let limit = i.b.like(x, if leaky { 0.0 } else { alpha })?;
                let above = i.b.compare(if leaky { Compare::Ge } else { Compare::Gt }, x, &limit)?;
                let other = i.b.mul_number(x, if leaky { alpha } else { 0.0 })?;
                i.b.select(&above, x, &other)
            }
            other => Err(format!("activation `{other}` is not supported")),
        }
    }
}

/// The activations of every direction; those with parameters take the next ones of the lists.
fn functions(c: &Call<'_>, defaults: &[&str], directions: usize) -> Result<Vec<Function>, String> {
    let names = match c.texts("activations")? {
        Some(list) if !list.is_empty() => list,
        _ => (0..directions).flat_map(|_| defaults.iter().map(|n| (*n).to_owned())).collect(),
    };
    if names.len() != defaults.len() * directions {
        return Err(format!("{} activations for {directions} directions", names.len()));
    }
    let list = |name: &str| Ok::<_, String>(c.floats(name)?.unwrap_or_default().into_iter());
    let (mut alphas, mut betas) = (list("activation_alpha")?, list("activation_beta")?);
    let function = |name: String| {
        let name = name.to_lowercase();
        let (alpha, beta) = match name.as_str() {
            "leakyrelu" => (Some(0.01), None),
            "thresholdedrelu" | "elu" => (Some(1.0), None),
            "hardsigmoid" => (Some(0.2), Some(0.5)),
            "affine" | "scaledtanh" => (Some(1.0), Some(if name == "affine" { 0.0 } else { 1.0 })),
            _ => (None, None),
        };
        let alpha = alpha.map_or(0.0, |d| alphas.next().unwrap_or(d));
        let beta = beta.map_or(0.0, |d| betas.next().unwrap_or(d));
        Function { name, alpha, beta }
    };
    Ok(names.into_iter().map(function).collect())
}

/// What the steps of one direction need.
struct Cell<'f> {
    kind: Kind,
    /// Recurrent weight `[hidden, gates · hidden]`.
    r: Val,
    /// Biases of the recurrent product, apart where a gate is applied behind it.
    rb: Option<Val>,
    peepholes: Option<Val>,
    f: &'f [Function],
    hidden: usize,
    clip: Option<f32>,
    /// `linear_before_reset` of a GRU, `input_forget` of an LSTM.
    flag: bool,
}

impl Cell<'_> {
    fn part(&self, i: &mut Importer<'_>, v: &Val, n: usize) -> Result<Val, String> {
        let last = i.b.rank(v)?.checked_sub(1).ok_or("has no gates")?;
        i.b.slice(v, last, n * self.hidden, (n + 1) * self.hidden)
    }

    fn activate(&self, i: &mut Importer<'_>, n: usize, x: &Val) -> Result<Val, String> {
        let x = match self.clip {
            Some(clip) => super::sample::clamp(i, x, (-clip).into(), clip.into())?,
            None => x.clone(),
        };
        self.f[n].apply(i, &x)
    }

    /// The new state, from the gates of the input `[batch, gates · hidden]` and the state `[batch, hidden]`.
    fn step(&self, i: &mut Importer<'_>, x: &Val, state: &[Val]) -> Result<Vec<Val>, String> {
        let h = &state[0];
        match self.kind {
            Kind::Rnn => {
                let r = matmul(i, h, &self.r)?;
                let sum = i.b.add(x, &r)?;
                Ok(vec![self.activate(i, 0, &sum)?])
            }
            Kind::Gru => self.gru(i, x, h),
            Kind::Lstm => self.lstm(i, x, h, &state[1]),
        }
    }

    fn gru(&self, i: &mut Importer<'_>, x: &Val, h: &Val) -> Result<Vec<Val>, String> {
        let n = self.hidden;
        let (both, own) = (i.b.slice(&self.r, 1, 0, 2 * n)?, i.b.slice(&self.r, 1, 2 * n, 3 * n)?);
        let gates = matmul(i, h, &both)?;
        let first = i.b.slice(x, 1, 0, 2 * n)?;
        let gates = i.b.add(&first, &gates)?;
        let (z, r) = (self.part(i, &gates, 0)?, self.part(i, &gates, 1)?);
        let (z, r) = (self.activate(i, 0, &z)?, self.activate(i, 0, &r)?);
        let biased = |i: &mut Importer<'_>, y: Val| self.rb.as_ref().map_or(Ok(y.clone()), |b| i.b.add(&y, b));
        let y = if self.flag {
            let y = matmul(i, h, &own)?;
            let y = biased(i, y)?;
            i.b.mul(&r, &y)?
        } else {
            let y = i.b.mul(&r, h)?;
            let y = matmul(i, &y, &own)?;
            biased(i, y)?
        };
        let input = self.part(i, x, 2)?;
        let y = i.b.add(&input, &y)?;
        let new = self.activate(i, 1, &y)?;
        // (1 − z) new + z h.
        let change = i.b.sub(h, &new)?;
        let change = i.b.mul(&z, &change)?;
        Ok(vec![i.b.add(&new, &change)?])
    }

    fn lstm(&self, i: &mut Importer<'_>, x: &Val, h: &Val, cell: &Val) -> Result<Vec<Val>, String> {
        let gates = matmul(i, h, &self.r)?;
        let gates = i.b.add(x, &gates)?;
        // Gates stand in the order input, output, forget, cell; peepholes in the order input, output, forget.
        let peep = |i: &mut Importer<'_>, n: usize, cell: &Val| {
            let gate = self.part(i, &gates, n)?;
            let Some(p) = &self.peepholes else { return Ok::<_, String>(gate) };
            let p = self.part(i, p, n)?;
            let p = i.b.mul(&p, cell)?;
            i.b.add(&gate, &p)
        };
        let input = peep(i, 0, cell)?;
        let input = self.activate(i, 0, &input)?;
        let forget = if self.flag {
            let y = i.b.mul_number(&input, -1.0)?;
            i.b.add_number(&y, 1.0)?
        } else {
            let y = peep(i, 2, cell)?;
            self.activate(i, 0, &y)?
        };
        let new = self.part(i, &gates, 3)?;
        let new = self.activate(i, 1, &new)?;
        let (kept, new) = (i.b.mul(&forget, cell)?, i.b.mul(&input, &new)?);
        let cell = i.b.add(&kept, &new)?;
        let output = peep(i, 1, &cell)?;
        let output = self.activate(i, 0, &output)?;
        // Clips apply to gates; the cell goes on as it is.
        let y = self.f[2].apply(i, &cell)?;
        Ok(vec![i.b.mul(&output, &y)?, cell])
    }
}

/// One direction's part of `[directions, …]`, without that dimension.
fn direction(i: &mut Importer<'_>, v: &Val, d: usize) -> Result<Val, String> {
    let mut dims = i.b.shape(v)?;
    let part = i.b.slice(v, 0, d, d + 1)?;
    dims.remove(0);
    i.b.reshape(&part, &dims)
}

fn layer(i: &mut Importer<'_>, c: &Call<'_>, kind: Kind) -> Result<Vec<Val>, String> {
    let (gates, states, defaults) = kind.parts();
    let batch_first = c.flag("layout")?;
    let swap = |i: &mut Importer<'_>, v: &Val| if batch_first { i.b.transpose(v, &[1, 0, 2]) } else { Ok(v.clone()) };
    let x = c.arg(0)?;
    if i.b.rank(x)? != 3 {
        return Err("needs an input of three dimensions".into());
    }
    let x = swap(i, x)?;
    let (w, r) = (c.arg(1)?, c.arg(2)?);
    let (&[steps, batch, size], &[directions, rows, have], &[_, _, hidden]) =
        (&i.b.shape(&x)?[..], &i.b.shape(w)?[..], &i.b.shape(r)?[..])
    else {
        return Err("needs weights of three dimensions".into());
    };
    let backward: &[bool] = match c.text_or("direction", "forward")?.as_str() {
        "forward" => &[false],
        "reverse" => &[true],
        "bidirectional" => &[false, true],
        other => return Err(format!("direction `{other}` is not supported")),
    };
    if have != size || Some(rows) != hidden.checked_mul(gates) || directions != backward.len() || hidden == 0 {
        return Err(format!("weights of {directions} × {rows} × {have} and {hidden} for {size} features"));
    }
    if i.b.shape(r)? != [directions, rows, hidden] {
        return Err(format!("a recurrent weight {:?}", i.b.shape(r)?));
    }
    if steps > MAX_STEPS {
        return Err(format!(
            "{steps} steps, and a recurrent layer is unrolled to at most {MAX_STEPS}; give shorter inputs"
        ));
    }
    let f = functions(c, defaults, directions)?;
    let lengths = c.opt(4).map(|v| i.b.cast(v, DType::I64)).transpose()?;
    let lengths = lengths.map(|v| i.b.reshape(&v, &[batch, 1])).transpose()?;
    let flag = if kind == Kind::Gru { "linear_before_reset" } else { "input_forget" };
    let mut y = Vec::with_capacity(directions);
    let mut last: Vec<Vec<Val>> = vec![Vec::new(); states];
    for (d, backward) in backward.iter().enumerate() {
        let (w, r) = (direction(i, w, d)?, direction(i, r, d)?);
        let (w, r) = (i.b.swap_last(&w)?, i.b.swap_last(&r)?);
        let mut input = matmul(i, &x, &w)?;
        let mut own = None;
        if let Some(b) = c.opt(3) {
            let b = direction(i, b, d)?;
            let (wb, rb) = (i.b.slice(&b, 0, 0, rows)?, i.b.slice(&b, 0, rows, 2 * rows)?);
            input = i.b.add(&input, &wb)?;
            if kind == Kind::Gru {
                let first = i.b.slice(&rb, 0, 0, 2 * hidden)?;
                let zero = i.b.like(&rb, 0.0)?;
                let zero = i.b.expand(&zero, &[hidden])?;
                let first = i.b.concat(&[&first, &zero], 0)?;
                input = i.b.add(&input, &first)?;
                own = Some(i.b.slice(&rb, 0, 2 * hidden, rows)?);
            } else {
                input = i.b.add(&input, &rb)?;
            }
        }
        let peepholes = if kind == Kind::Lstm { c.opt(7) } else { None };
        let peepholes = peepholes.map(|p| direction(i, p, d)).transpose()?;
        let f = &f[d * defaults.len()..][..defaults.len()];
        let (clip, flag) = (c.float("clip")?.filter(|v| *v > 0.0), c.flag(flag)?);
        let cell = Cell { kind, r, rb: own, peepholes, f, hidden, clip, flag };
        let mut state = Vec::with_capacity(states);
        for n in 0..states {
            state.push(match c.opt(5 + n) {
                Some(first) => {
                    let first = swap(i, first)?;
                    direction(i, &first, d)?
                }
                None => {
                    let zero = i.b.like(&x, 0.0)?;
                    i.b.expand(&zero, &[batch, hidden])?
                }
            });
        }
        let mut rows = Vec::with_capacity(steps);
        for n in 0..steps {
            let t = if *backward { steps - 1 - n } else { n };
            let row = direction(i, &input, t)?;
            let mut new = cell.step(i, &row, &state)?;
            let mut out = new[0].clone();
            // Beyond its length a sequence keeps its state and gives zeros.
            if let Some(lengths) = &lengths {
                let t = i.b.like(lengths, t as f64)?;
                let within = i.b.compare(Compare::Lt, &t, lengths)?;
                let zero = i.b.like(&out, 0.0)?;
                out = i.b.select(&within, &out, &zero)?;
                for (new, old) in new.iter_mut().zip(&state) {
                    *new = i.b.select(&within, new, old)?;
                }
            }
            state = new;
            rows.push(i.b.reshape(&out, &[1, 1, batch, hidden])?);
        }
        if *backward {
            rows.reverse();
        }
        y.push(i.b.concat(&rows.iter().collect::<Vec<_>>(), 0)?);
        for (last, state) in last.iter_mut().zip(&state) {
            last.push(i.b.reshape(state, &[1, batch, hidden])?);
        }
    }
    let y = i.b.concat(&y.iter().collect::<Vec<_>>(), 1)?;
    let mut out = vec![if batch_first { i.b.transpose(&y, &[2, 0, 1, 3])? } else { y }];
    for last in &last {
        let last = i.b.concat(&last.iter().collect::<Vec<_>>(), 0)?;
        out.push(swap(i, &last)?);
    }
    Ok(out)
}
