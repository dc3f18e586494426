//! Ops that are refused, and why: a model that holds one must be exported or cut differently.

const RANDOM: &str = "its random numbers are not reproducible: make them an input, or export the model for inference";
const TEXT: &str = "works on text: do this before the model, and give it numbers";
const TREES: &str = "is a tree or a kernel machine, which is no product of tensors";

/// Name, and why.
const REFUSED: &[(&str, &str, &str)] = &[
    ("", "Bernoulli", RANDOM),
    ("", "ImageDecoder", "reads image files: decode them before the model, and give it their pixels"),
    ("", "Multinomial", RANDOM),
    ("", "RandomNormal", RANDOM),
    ("", "RandomNormalLike", RANDOM),
    ("", "RandomUniform", RANDOM),
    ("", "RandomUniformLike", RANDOM),
    ("", "RegexFullMatch", TEXT),
    ("", "StringConcat", TEXT),
    ("", "StringNormalizer", TEXT),
    ("", "StringSplit", TEXT),
    ("", "TfIdfVectorizer", "counts groups of words: do this before the model, and give it the counts"),
    ("ai.onnx.ml", "CategoryMapper", TEXT),
    ("ai.onnx.ml", "SVMClassifier", TREES),
    ("ai.onnx.ml", "SVMRegressor", TREES),
    ("ai.onnx.ml", "TreeEnsemble", TREES),
    ("ai.onnx.ml", "TreeEnsembleClassifier", TREES),
    ("ai.onnx.ml", "TreeEnsembleRegressor", TREES),
    ("ai.onnx.preview.training", "Gradient", "computes gradients: export the model for inference"),
];

/// Why an op is refused, if it is one that is known.
pub(in super::super) fn reason(domain: &str, name: &str) -> Option<&'static str> {
    REFUSED.iter().find(|(d, n, _)| (*d, *n) == (domain, name)).map(|(_, _, why)| *why)
}
