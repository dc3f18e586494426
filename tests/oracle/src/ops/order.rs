//! Sorting and the largest element, from comparisons of all pairs: burn does not promise an order of equals.

use burn::tensor::{Int, IntDType, Tensor as Burn, TensorData};

use crate::value::{Floats, Operand, RANK, Value, axis, count, device};

/// Where the extreme is, of all places that hold it the first or the last.
pub(super) fn arg_max(x: &Operand, a: i64, min: bool, last: bool) -> Result<Value, String> {
    let dim = axis(a, x.rank());
    let n = x.value.dims()[dim];
    macro_rules! places {
        ($x:expr) => {{
            let extreme = if min { $x.clone().min_dim(dim) } else { $x.clone().max_dim(dim) };
            let here = $x.clone().equal(extreme.expand($x.dims()));
            let places = count(n, dim).expand($x.dims());
            let (elsewhere, here) = (if last { -1 } else { n as i64 }, here);
            let places = places.mask_fill(here.bool_not(), elsewhere);
            if last { places.max_dim(dim) } else { places.min_dim(dim) }
        }};
    }
    Ok(Value::Int(match &x.value {
        Value::Float(x) => places!(x),
        Value::Int(x) => places!(x),
        Value::Bool(_) => return Err("the largest bool".into()),
    }))
}

/// An element's place is the number of those before it: smaller ones, and equals that came earlier.
pub(super) fn sort(x: &Operand, a: i64, descending: bool) -> Result<Vec<Value>, String> {
    let dim = axis(a, x.rank());
    let is_int = matches!(x.value, Value::Int(_));
    let wide: Floats = match &x.value {
        Value::Float(v) => v.clone(),
        // Integers of the cases are exact in f64.
        Value::Int(v) => v.clone().cast(burn::tensor::FloatDType::F64),
        Value::Bool(_) => return Err("an order of bools".into()),
    };
    let turned = wide.swap_dims(dim, RANK - 1);
    let shape = turned.dims();
    let n = shape[RANK - 1];
    let rows = shape.iter().product::<usize>() / n;
    let x: Burn<2> = turned.reshape([rows, n]);
    let (mine, other) = (x.clone().reshape([rows, n, 1]).expand([rows, n, n]), x.clone().reshape([rows, 1, n]));
    let other = other.expand([rows, n, n]);
    let index: Burn<1, Int> =
        Burn::from_data(TensorData::new((0..n as i64).collect(), [n]), (&device(), IntDType::I64.into()));
    let i = index.clone().reshape([1, n, 1]).expand([rows, n, n]);
    let j = index.clone().reshape([1, 1, n]).expand([rows, n, n]);
    let first = if descending { other.clone().greater(mine.clone()) } else { other.clone().lower(mine.clone()) };
    let before = first.bool_or(other.equal(mine).bool_and(j.clone().lower(i.clone())));
    let place: Burn<3, Int> = before.cast(IntDType::I64).sum_dim(2);
    // Of the element at place k, its index: of one-hot rows, the sum of index times one.
    let hot = place.expand([rows, n, n]).equal(j).cast(IntDType::I64);
    let order: Burn<2, Int> = (i * hot).sum_dim(1).reshape([rows, n]);
    let sorted = x.gather(1, order.clone());
    let back = |t: Burn<2>| -> Floats { t.reshape(shape).swap_dims(dim, RANK - 1) };
    let order = order.reshape(shape).swap_dims(dim, RANK - 1);
    let sorted = back(sorted);
    let sorted = if is_int { Value::Int(sorted.cast(IntDType::I64)) } else { Value::Float(sorted) };
    Ok(vec![sorted, Value::Int(order)])
}
