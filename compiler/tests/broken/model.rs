//! A copy of the trained tiny checkpoint that can be damaged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// Files of a checkpoint, changed in memory and then saved.
pub(crate) struct Model {
    pub(crate) dir: PathBuf,
    files: BTreeMap<String, Vec<u8>>,
}

const WEIGHTS: &str = "model.safetensors";

/// The trained checkpoint of the examples, saved to `dir/model`.
pub(crate) fn sdar_tiny(dir: &Path) -> Model {
    example(dir, "sdar-tiny")
}

/// A checkpoint of the examples, saved to `dir/model`.
pub(crate) fn example(dir: &Path, name: &str) -> Model {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models").join(name);
    let files = std::fs::read_dir(source).unwrap().map(|e| e.unwrap().path());
    let read = |path: PathBuf| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap());
    let model = Model { dir: dir.join("model"), files: files.map(read).collect() };
    model.save();
    model
}

impl Model {
    pub(crate) fn save(&self) {
        let _ = std::fs::remove_dir_all(&self.dir);
        std::fs::create_dir(&self.dir).unwrap();
        for (name, bytes) in &self.files {
            std::fs::write(self.dir.join(name), bytes).unwrap();
        }
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.files.remove(name).unwrap();
    }

    pub(crate) fn write(&mut self, name: &str, bytes: &[u8]) {
        self.files.insert(name.to_owned(), bytes.to_vec());
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

    /// Header and data of the weight file.
    fn weights(&self) -> (Map<String, Value>, Vec<u8>) {
        let file = &self.files[WEIGHTS];
        let len = usize::try_from(u64::from_le_bytes(file[..8].try_into().unwrap())).unwrap();
        (serde_json::from_slice(&file[8..8 + len]).unwrap(), file[8 + len..].to_vec())
    }

    fn json(&mut self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut json = serde_json::from_slice(&self.files[name]).unwrap();
        change(&mut json);
        self.write(name, json.to_string().as_bytes());
    }
}
