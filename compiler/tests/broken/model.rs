//! A copy of the trained tiny checkpoint that can be damaged.

#![allow(dead_code, reason = "each test program damages in its own ways")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// Files of a checkpoint, changed in memory and then saved.
pub(crate) struct Model {
    pub(crate) dir: PathBuf,
    files: BTreeMap<String, Vec<u8>>,
    /// The files as they were, and the shards and index that the same weights have elsewhere.
    published: BTreeMap<String, Vec<u8>>,
}

const WEIGHTS: &str = "model.safetensors";

/// The trained SDAR checkpoint of the examples, saved to `dir/model`.
pub(crate) fn sdar_tiny(dir: &Path) -> Model {
    example(dir, "sdar-tiny")
}

/// A trained checkpoint of the examples, saved to `dir/model`.
pub(crate) fn example(dir: &Path, name: &str) -> Model {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models").join(name);
    let files = std::fs::read_dir(source).unwrap().map(|e| e.unwrap().path());
    let read = |path: PathBuf| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap());
    let files: BTreeMap<_, _> = files.map(read).collect();
    let mut model = Model { dir: dir.join("model"), published: files.clone(), files };
    model.split();
    model.published.extend(std::mem::replace(&mut model.files, model.published.clone()));
    model.save();
    model
}

impl Model {
    pub(crate) fn save(&self) {
        let _ = std::fs::remove_dir_all(&self.dir);
        std::fs::create_dir(&self.dir).unwrap();
        for (name, bytes) in &self.files {
            let path = self.dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.files.remove(name).unwrap();
    }

    pub(crate) fn write(&mut self, name: &str, bytes: &[u8]) {
        self.files.insert(name.to_owned(), bytes.to_vec());
    }

    /// Gives a file another name.
    pub(crate) fn take(&mut self, name: &str, to: &str) {
        let bytes = self.files.remove(name).unwrap();
        self.write(to, &bytes);
    }

    /// Moves all files into a directory.
    pub(crate) fn move_into(&mut self, dir: &str) {
        self.files = std::mem::take(&mut self.files).into_iter().map(|(n, b)| (format!("{dir}/{n}"), b)).collect();
    }

    /// Puts files in their places as they were published; one that never was is removed.
    pub(crate) fn fetch(&mut self, names: &[&str]) {
        for name in names {
            match self.published.get(*name) {
                Some(bytes) => drop(self.files.insert((*name).to_owned(), bytes.clone())),
                None => drop(self.files.remove(*name)),
            }
        }
    }

    /// Puts all files in their places as they were in the example.
    pub(crate) fn restart(&mut self) {
        let shard = |name: &str| name.starts_with("model-") || name == INDEX;
        self.files = self.published.iter().filter(|(n, _)| !shard(n)).map(|(n, b)| (n.clone(), b.clone())).collect();
    }

    /// The tensors as they were published.
    pub(crate) fn original(&self) -> Tensors {
        let (header, data) = split_file(&self.published[WEIGHTS]);
        read_tensors(&header, &data)
    }

    /// Sets a key of config.json.
    pub(crate) fn set(&mut self, key: &str, value: Value) {
        self.json("config.json", |json| json[key] = value);
    }

    /// Removes a key of config.json.
    pub(crate) fn unset(&mut self, key: &str) {
        self.json("config.json", |json| drop(json.as_object_mut().unwrap().remove(key)));
    }

    /// Gives an added token another id.
    pub(crate) fn tokenizer_id(&mut self, token: &str, id: u32) {
        self.json("tokenizer.json", |json| {
            let added = json["added_tokens"].as_array_mut().unwrap();
            added.iter_mut().find(|t| t["content"] == token).unwrap()["id"] = json!(id);
        });
    }

    /// Keeps only the first bytes of the weight file.
    pub(crate) fn cut(&mut self, len: usize) {
        self.files.get_mut(WEIGHTS).unwrap().truncate(len);
    }

    /// Claims another header length.
    pub(crate) fn header_len(&mut self, len: u64) {
        self.files.get_mut(WEIGHTS).unwrap()[..8].copy_from_slice(&len.to_le_bytes());
    }

    /// Replaces the header of the weight file.
    pub(crate) fn header_text(&mut self, text: &str) {
        let data = self.weights().1;
        let bytes = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &data].concat();
        self.write(WEIGHTS, &bytes);
    }

    /// Sets a field of a tensor's header entry.
    pub(crate) fn entry(&mut self, tensor: &str, field: &str, value: Value) {
        let mut header = self.weights().0;
        header[tensor][field] = value;
        self.header_text(&Value::Object(header).to_string());
    }

    /// Sets the texts of the header of the weight file.
    pub(crate) fn metadata(&mut self, texts: Map<String, Value>) {
        let mut header = self.weights().0;
        header.insert("__metadata__".into(), Value::Object(texts));
        self.header_text(&Value::Object(header).to_string());
    }

    pub(crate) fn rename(&mut self, tensor: &str, to: &str) {
        let mut header = self.weights().0;
        let entry = header.remove(tensor).unwrap();
        header.insert(to.to_owned(), entry);
        self.header_text(&Value::Object(header).to_string());
    }

    /// Overwrites a bf16 element of a tensor with these bits.
    pub(crate) fn poke(&mut self, tensor: &str, element: usize, bits: u16) {
        let (header, data) = self.weights();
        let start = usize::try_from(header[tensor]["data_offsets"][0].as_u64().unwrap()).unwrap();
        let file = self.files.get_mut(WEIGHTS).unwrap();
        let at = file.len() - data.len() + start + 2 * element;
        file[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    }

    /// Adds an index that places every tensor in `shard`.
    pub(crate) fn index(&mut self, shard: &str) {
        let tensors = self.weights().0;
        let names = tensors.keys().filter(|k| *k != "__metadata__");
        let map: Map<String, Value> = names.map(|name| (name.clone(), json!(shard))).collect();
        let index = json!({"metadata": {}, "weight_map": map});
        self.write("model.safetensors.index.json", index.to_string().as_bytes());
        self.remove(WEIGHTS);
    }

    /// The tensors of the single weight file.
    pub(crate) fn tensors(&self) -> Tensors {
        let (header, data) = self.weights();
        read_tensors(&header, &data)
    }

    /// Writes a weight file.
    pub(crate) fn write_tensors(&mut self, file: &str, tensors: &Tensors) {
        let (mut header, mut data) = (Map::new(), Vec::new());
        for (name, (dtype, shape, bytes)) in tensors {
            let range = [data.len(), data.len() + bytes.len()];
            header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": range}));
            data.extend_from_slice(bytes);
        }
        let header = Value::Object(header).to_string();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
        self.write(file, &bytes);
    }

    /// Splits the weight file into two shards with an index.
    pub(crate) fn split(&mut self) -> [String; 2] {
        let mut first = self.tensors();
        let middle = first.keys().nth(first.len() / 2).unwrap().clone();
        let second = first.split_off(&middle);
        let shards = [1, 2].map(|i| format!("model-0000{i}-of-00002.safetensors"));
        let mut map = Map::new();
        for (file, tensors) in shards.iter().zip([&first, &second]) {
            self.write_tensors(file, tensors);
            map.extend(tensors.keys().map(|name| (name.clone(), json!(file))));
        }
        self.remove(WEIGHTS);
        self.write(INDEX, json!({"metadata": {}, "weight_map": map}).to_string().as_bytes());
        shards
    }

    /// Adds tensors to a file that has some.
    pub(crate) fn add_tensors(&mut self, file: &str, more: Tensors) {
        let (header, data) = split_file(&self.files[file]);
        let mut tensors = read_tensors(&header, &data);
        tensors.extend(more);
        self.write_tensors(file, &tensors);
    }

    pub(crate) fn bytes(&self, name: &str) -> &[u8] {
        &self.files[name]
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Header and data of the weight file.
    fn weights(&self) -> (Map<String, Value>, Vec<u8>) {
        split_file(&self.files[WEIGHTS])
    }

    pub(crate) fn json(&mut self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut json = serde_json::from_slice(&self.files[name]).unwrap();
        change(&mut json);
        self.write(name, json.to_string().as_bytes());
    }
}

/// Name → element type, shape and bytes of a tensor.
pub(crate) type Tensors = BTreeMap<String, (String, Value, Vec<u8>)>;

pub(crate) const INDEX: &str = "model.safetensors.index.json";

fn split_file(file: &[u8]) -> (Map<String, Value>, Vec<u8>) {
    let len = usize::try_from(u64::from_le_bytes(file[..8].try_into().unwrap())).unwrap();
    (serde_json::from_slice(&file[8..8 + len]).unwrap(), file[8 + len..].to_vec())
}

fn read_tensors(header: &Map<String, Value>, data: &[u8]) -> Tensors {
    let at = |v: &Value| usize::try_from(v.as_u64().unwrap()).unwrap();
    let entries = header.iter().filter(|(name, _)| *name != "__metadata__").map(|(name, entry)| {
        let range = at(&entry["data_offsets"][0])..at(&entry["data_offsets"][1]);
        (name.clone(), (entry["dtype"].as_str().unwrap().to_owned(), entry["shape"].clone(), data[range].to_vec()))
    });
    entries.collect()
}
