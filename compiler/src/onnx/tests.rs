//! Tests of the ONNX reader: files are made here, from the messages, and opened.

mod activations;
mod broken;
mod damage;
mod external;
mod functions;
mod generated;
mod graphs;
mod made;
mod values;
