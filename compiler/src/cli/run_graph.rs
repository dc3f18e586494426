//! `dlxc run-graph`: arrays of a file through a graph, into another file.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use dlx_ir::{DType, Data, Error, Tensor};
use dlx_runtime::artifact::Artifact;
use dlx_runtime::graph::{GraphError, GraphModel, GraphOptions, Signature, Tensors, read_graph_manifest};
use serde_json::json;

use super::table::{self, Align};
use super::{Failure, terminal};
use crate::arrays::{self, Array, ArrayFile, Format};

/// Run a graph, such as an encoder, on arrays.
#[derive(Parser, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A .dlxa file that holds graphs; `dlxc inspect` shows what they take and give.
    #[arg(value_name = "ARTIFACT")]
    pub artifact: PathBuf,
    /// Arrays named like the inputs: .npz or .safetensors, or one .npy for a graph of one input. Their types and shapes choose
    /// the graph.
    #[arg(short, long, value_name = "FILE")]
    pub inputs: PathBuf,
    /// File to write the outputs into: .npz, .safetensors, or .npy for a graph of one output.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Most memory that weights and values may take, in GiB.
    #[arg(long, value_name = "GIB", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub memory: u64,
    /// Threads to use, one per core if not given. The output does not depend on it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Read the artifact into memory instead of mapping it.
    #[arg(long)]
    pub no_mmap: bool,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  dlxc inspect encoder.dlxa                                            what it takes
  python3 -c 'import numpy as np; np.savez(\"in.npz\", input_ids=np.array([[101, 7592, 102]]))'
  dlxc run-graph encoder.dlxa --inputs in.npz -o out.npz
  dlxc run-graph encoder.dlxa --inputs in.safetensors -o out.safetensors --json";

/// Runs the subcommand.
///
/// # Errors
/// An artifact without graphs, inputs that none of them takes, a node that fails, or on Ctrl-C.
pub fn run(args: &Args) -> Result<(), Failure> {
    Format::of(&args.output)?;
    for input in [&args.artifact, &args.inputs] {
        crate::driver::keep_input(input, &args.output)?;
    }
    let threads = args.threads.map_or(0, usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| Error::new("--threads", e.to_string()))?;
    let done = pool.install(|| compute(args))?;
    let text = if args.json { format!("{:#}\n", done.json(args)) } else { done.table(args) };
    terminal::print(&text)
}

/// A finished run.
struct Done {
    entry: Signature,
    outputs: Tensors,
    load: Duration,
    time: Duration,
}

fn compute(args: &Args) -> Result<Done, Failure> {
    let failed = |e: GraphError| Failure::from(Error::new("", e.to_string()));
    let begin = Instant::now();
    let artifact = if args.no_mmap { Artifact::read(&args.artifact) } else { Artifact::open(&args.artifact) };
    let artifact = artifact.map_err(|e| failed(e.into()))?;
    for note in read_graph_manifest(&artifact).map_err(failed)?.notes {
        terminal::note(&format!("note: {note}"));
    }
    let options = GraphOptions { memory: args.memory << 30, ..GraphOptions::default() };
    let model = GraphModel::load(&artifact, &options).map_err(failed)?;
    let load = begin.elapsed();

    let mut file = ArrayFile::open(&args.inputs)?;
    let arrays = named(file.arrays(), model.entries(), args)?;
    let wanted: Vec<DType> = arrays.iter().map(|a| taken(a, model.entries())).collect();
    let given: Vec<_> = arrays.iter().zip(&wanted).map(|(a, w)| (a.name.as_str(), *w, a.shape.as_slice())).collect();
    let of_inputs = |e: GraphError| Failure::from(Error::new(args.inputs.display(), e.to_string()));
    let entry = model.entry_for(&given).map_err(of_inputs)?.clone();
    let mut inputs = Tensors::new();
    for (i, (array, wanted)) in arrays.iter().zip(&wanted).enumerate() {
        // The shape is one that the graph takes, so its size is one that the artifact answers for.
        let tensor = converted(file.read(i)?, *wanted)
            .map_err(|e| Error::new(format!("{}: `{}`", args.inputs.display(), array.name), e))?;
        if array.dtype != *wanted {
            terminal::note(&format!("note: input `{}` is {} and was converted to {wanted}", array.name, array.dtype));
        }
        inputs.insert(array.name.clone(), tensor);
    }

    let begin = Instant::now();
    let outputs = model.run_until(&inputs, terminal::interrupt_flag()).map_err(failed)?;
    let time = begin.elapsed();
    arrays::write(&args.output, &written(outputs.clone(), &args.output)?)?;
    Ok(Done { entry, outputs, load, time })
}

/// The arrays of a file by the names of inputs: an array without a name is the one input of the graphs.
fn named(arrays: &[Array], entries: &[Signature], args: &Args) -> Result<Vec<Array>, Error> {
    let mut arrays = arrays.to_vec();
    for array in arrays.iter_mut().filter(|a| a.name.is_empty()) {
        let mut names = entries.iter().map(|e| e.inputs.first().filter(|_| e.inputs.len() == 1));
        let first = names.next().flatten().filter(|first| names.all(|n| n.is_some_and(|n| n.name == first.name)));
        let first = first.ok_or_else(|| {
            let listed: Vec<_> = entries.iter().map(ToString::to_string).collect();
            Error::new(args.inputs.display(), "has no names, but the graphs have several inputs")
                .help(format!("save them with numpy.savez; the model has {}", listed.join("\n      and ")))
        })?;
        array.name.clone_from(&first.name);
    }
    Ok(arrays)
}

/// The type that an array is taken as: i32 stands for i64 and the other way round where only that is asked for.
fn taken(array: &Array, entries: &[Signature]) -> DType {
    let ports = || entries.iter().flat_map(|e| &e.inputs).filter(|p| p.name == array.name);
    let other = match array.dtype {
        DType::I32 => DType::I64,
        DType::I64 => DType::I32,
        dtype => return dtype,
    };
    let asked = |dtype: DType| ports().any(|p| p.dtype == dtype.to_string());
    if asked(other) && !asked(array.dtype) { other } else { array.dtype }
}

/// Integers as another type, if it holds them.
fn converted(tensor: Tensor, to: DType) -> Result<Tensor, String> {
    let Tensor { dtype, shape, data } = tensor;
    let data = match (data, to) {
        (Data::I32(x), DType::I64) => Data::I64(x.into_iter().map(i64::from).collect()),
        (Data::I64(x), DType::I32) if dtype == DType::I64 => {
            let narrow =
                |v: i64| i32::try_from(v).map_err(|_| format!("holds {v}, which i32 does not; save it as i32"));
            Data::I32(x.into_iter().map(narrow).collect::<Result<_, _>>()?)
        }
        (data, _) => data,
    };
    Ok(Tensor { dtype: to, shape, data })
}

/// Outputs as a file holds them: NumPy has no bf16, but f32 holds its numbers.
fn written(mut outputs: Tensors, path: &std::path::Path) -> Result<Tensors, Error> {
    let format = Format::of(path)?;
    for (name, t) in outputs.iter_mut().filter(|(_, t)| !format.holds(t.dtype)) {
        terminal::note(&format!("note: output `{name}` is {} and is written as f32", t.dtype));
        t.dtype = DType::F32;
    }
    Ok(outputs)
}

impl Done {
    fn json(&self, args: &Args) -> serde_json::Value {
        json!({
            "entry": self.entry,
            "output": args.output.display().to_string(),
            "seconds": {"load": self.load.as_secs_f64(), "run": self.time.as_secs_f64()},
        })
    }

    fn table(&self, args: &Args) -> String {
        let rows: Vec<Vec<String>> = self
            .entry
            .outputs
            .iter()
            .map(|port| {
                let range = self.outputs.get(&port.name).map_or_else(String::new, range);
                vec![port.name.clone(), port.ty(), range]
            })
            .collect();
        let columns = [("output", Align::Left), ("type", Align::Left), ("range", Align::Left)];
        let (load, time) = (table::duration(self.load), table::duration(self.time));
        let path = args.output.display();
        format!("{}{path}: {} in {time}, loaded in {load}\n", table::table(&columns, &rows), self.entry.name)
    }
}

/// The least and largest number of an output, and whether some are none.
fn range(t: &Tensor) -> String {
    let numbers: Vec<f64> = match &t.data {
        Data::F64(x) => x.clone(),
        Data::F32(x) => x.iter().map(|v| f64::from(*v)).collect(),
        Data::I32(x) => x.iter().map(|v| f64::from(*v)).collect(),
        Data::I64(x) => x.iter().map(|v| *v as f64).collect(),
        Data::Bool(x) => x.iter().map(|v| f64::from(u8::from(*v))).collect(),
    };
    let least = numbers.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let nan = if numbers.iter().any(|v| v.is_nan()) { ", some NaN" } else { "" };
    format!("{least:.6} … {largest:.6}{nan}")
}
