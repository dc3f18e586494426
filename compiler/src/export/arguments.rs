//! What the host of an export computes: embeddings, angles and masks of rows.

use dlx_ir::{DType, Data, Error, Mask, Module, Node, Op, Tensor, WeightDef, WeightId};
use dlx_runtime::host::MASKED;
use dlx_targets::{WeightSource, weight};
use half::f16;

/// The embedding table and the angles of a model, as its host needs them.
pub struct Embeddings<'a> {
    /// Where the model's weights come from.
    pub source: &'a dyn WeightSource,
    name: String,
    /// Rows of the table: the vocabulary.
    pub rows: usize,
    /// Features of a row.
    pub columns: usize,
    /// The table, where it is computed.
    whole: Option<Vec<f32>>,
    /// Base of the angles.
    pub theta: f32,
    /// Features of a head.
    pub head_dim: u32,
}

impl<'a> Embeddings<'a> {
    /// Finds table and angles in `@forward`.
    ///
    /// # Errors
    /// There are none, or several.
    pub fn of(module: &Module, source: &'a dyn WeightSource) -> Result<Self, Error> {
        let nodes = || module.graphs.iter().flat_map(|g| &g.nodes);
        let table = |n: &Node| matches!(n.op, Op::Embed {}).then(|| n.inputs[1].weight()).flatten();
        let tables: Vec<WeightId> = nodes().filter_map(table).collect();
        let angles = nodes().filter_map(|n| match n.op {
            Op::RopeTable { theta, head_dim } => Some((theta, head_dim)),
            _ => None,
        });
        let angles: Vec<(f32, u32)> = angles.collect();
        let (&[table], &[(theta, head_dim)]) = (&tables[..], &angles[..]) else {
            let message = format!("has {} embeddings and {} tables of angles", tables.len(), angles.len());
            return Err(Error::new(format!("module @{}", module.name), message).help("an export needs one of each"));
        };
        let w = &module.weights[table];
        let Some(&[rows, columns]) = w.ty.shape().as_deref() else {
            return Err(Error::new(module.weight_text(w), "is no table"));
        };
        let whole = match w.def {
            WeightDef::Source => None,
            _ => match weight(module, table, source)?.data {
                Data::F32(values) => Some(values),
                _ => return Err(Error::new(module.weight_text(w), "holds no floats")),
            },
        };
        Ok(Embeddings { source, name: w.name.clone(), rows, columns, whole, theta, head_dim })
    }

    /// Rows `range` of the table.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn read(&self, range: std::ops::Range<usize>) -> Result<Vec<f32>, Error> {
        if let Some(whole) = &self.whole {
            return Ok(whole[range.start * self.columns..range.end * self.columns].to_vec());
        }
        let mut out = vec![0.0; range.len() * self.columns];
        self.source.read_rows(&self.name, range.clone(), &mut out)?;
        self.source.release_rows(&self.name, range);
        Ok(out)
    }

    /// The arguments of a step that is given a whole sequence: `x`, `cos`, `sin` and `mask`, without a cache.
    ///
    /// # Errors
    /// An id outside the table.
    pub fn sequence(&self, ids: &[i32], rule: Mask, rows: usize) -> Result<Vec<Tensor>, Error> {
        let mut x = Vec::with_capacity(rows * self.columns);
        for row in 0..rows {
            // Rows that only fill up repeat the first one.
            let id = ids.get(row).or(ids.first()).copied().unwrap_or(0);
            let id = usize::try_from(id).ok().filter(|id| *id < self.rows);
            let id = id.ok_or_else(|| Error::new("calibration", "has a token that the model has not"))?;
            x.extend(self.read(id..id + 1)?);
        }
        let place = |row: usize| if row < ids.len() { row } else { 0 };
        let positions: Vec<usize> = (0..rows).map(place).collect();
        let (cos, sin) = self.angles(&positions);
        let sees = |row: usize, column: usize| column < ids.len() && rule.sees(place(row), column);
        let added = |n: usize| if sees(n / rows, n % rows) { 0.0 } else { MASKED };
        let mask = (0..rows * rows).map(added).collect();
        let hd = self.head_dim as usize;
        Ok(vec![half(x, rows, self.columns), half(cos, rows, hd), half(sin, rows, hd), half(mask, rows, rows)])
    }

    /// Cosines and sines of positions, both halves each, the first half of the sines negated.
    pub fn angles(&self, positions: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let half = self.head_dim as usize / 2;
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in positions {
            let angle = |i: usize| {
                let exponent = -2.0 * i as f64 / f64::from(self.head_dim);
                *position as f64 * libm::pow(f64::from(self.theta), exponent)
            };
            cos.extend((0..2 * half).map(|i| libm::cos(angle(i % half)) as f32));
            let sign = |i: usize| if i < half { -1.0 } else { 1.0 };
            sin.extend((0..2 * half).map(|i| (sign(i) * libm::sin(angle(i % half))) as f32));
        }
        (cos, sin)
    }
}

fn half(values: Vec<f32>, rows: usize, columns: usize) -> Tensor {
    let values = values.into_iter().map(|v| f16::from_f32(v).to_f32()).collect();
    Tensor { dtype: DType::F16, shape: vec![rows, columns], data: Data::F32(values) }
}
