//! A resumed splitter produces the same files; which documents become validation data.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use jaxgpt_loader::shard::format::Dtype;
use jaxgpt_loader::shard::split_writer;
use jaxgpt_loader::shard::writer::Layout;
use jaxgpt_loader::split::{Batch, Options, Progress, Splitter, first_half, text_key};

use proptest::prelude::*;

type Document = (String, Vec<u32>);

fn options(folder: &Path, layout: Layout, val_tokens: u64, key_limit: u128) -> Options {
    let files = split_writer::Options {
        folder: folder.into(),
        name: String::new(),
        dtype: Dtype::U16,
        layout,
        shard_tokens: 37,
    };
    Options { files, end_of_text: Some(999), val_tokens, key_limit, clusters: None, max_tokens: u64::MAX }
}

fn add(splitter: &mut Splitter, documents: &[Document]) {
    let mut texts = Vec::new();
    let mut ids = Vec::new();
    let mut text_offsets = vec![0];
    let mut id_offsets = vec![0];
    for (text, tokens) in documents {
        texts.extend(text.as_bytes());
        ids.extend(tokens);
        text_offsets.push(texts.len() as i64);
        id_offsets.push(ids.len() as i64);
    }
    let batch = Batch { texts: &texts, text_offsets: &text_offsets, ids: &ids, id_offsets: &id_offsets };
    batch.check().unwrap();
    assert_eq!(splitter.add(&batch, 0, documents.len()).unwrap(), documents.len());
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let names = fs::read_dir(folder).unwrap().map(name).filter(|name| !name.starts_with('.'));
    names.map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect()
}

fn split_uninterrupted(
    documents: &[Document],
    layout: Layout,
    val_tokens: u64,
    key_limit: u128,
) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let mut splitter =
        Splitter::resume(options(folder.path(), layout, val_tokens, key_limit), Progress::default()).unwrap();
    add(&mut splitter, documents);
    splitter.finish().unwrap();
    files(folder.path())
}

fn documents() -> impl Strategy<Value = Vec<Document>> {
    prop::collection::vec(("[a-z ]{0,20}", prop::collection::vec(0u32..999, 0..60)), 1..40)
}

proptest! {
    /// Synced at `synced`, interrupted at `stopped` or during `finish`, and resumed: the files are the same.
    #[test]
    fn resumed_splitter_writes_the_same_files(
        documents in documents(), headerless in any::<bool>(), val_tokens in 0u64..400, quarters in 0u32..=4,
        synced in 0usize..40, stopped in 0usize..40, finishing in any::<bool>()
    ) {
        let layout = if headerless { Layout::Headerless } else { Layout::Shard };
        let limit = (u128::from(quarters) << 64) / 4;
        let synced = synced.min(documents.len());
        let stopped = stopped.clamp(synced, documents.len());
        let folder = tempfile::tempdir().unwrap();
        let same_options = || options(folder.path(), layout, val_tokens, limit);
        let mut splitter = Splitter::resume(same_options(), Progress::default()).unwrap();
        add(&mut splitter, &documents[..synced]);
        let progress = splitter.sync().unwrap();
        add(&mut splitter, &documents[synced..stopped]);
        if finishing { drop(splitter.finish()) } else { drop(splitter) }
        let mut resumed = Splitter::resume(same_options(), progress).unwrap();
        add(&mut resumed, &documents[synced..]);
        resumed.finish().unwrap();
        prop_assert_eq!(files(folder.path()), split_uninterrupted(&documents, layout, val_tokens, limit));
    }

    /// Validation gets the documents with the lowest keys, up to the one that reaches its size; train gets all others.
    #[test]
    fn validation_gets_the_lowest_keys(documents in documents(), val_tokens in 1u64..400) {
        let files = split_uninterrupted(&documents, Layout::Headerless, val_tokens, u128::MAX);
        let tokens = |chosen: &dyn Fn(&Document) -> bool| -> Vec<u8> {
            let chosen = documents.iter().filter(|document| chosen(document));
            chosen.flat_map(|(_, ids)| ids.iter().chain([&999]).flat_map(|&id| (id as u16).to_le_bytes())).collect()
        };
        let mut keys: Vec<_> = documents.iter().map(|(text, ids)| (text_key(text.as_bytes()), ids.len() + 1)).collect();
        keys.sort();
        let mut total = 0;
        let last = keys.iter().find(|(_, count)| { total += count; total as u64 >= val_tokens });
        let cutoff = last.or(keys.last()).unwrap().0;
        let val = tokens(&|(text, _)| text_key(text.as_bytes()) <= cutoff);
        let train = tokens(&|(text, _)| text_key(text.as_bytes()) > cutoff);
        prop_assert_eq!(files.get("val.bin").cloned().unwrap_or_default(), val);
        prop_assert_eq!(files.get("train.bin").cloned().unwrap_or_default(), train);
    }
}

#[test]
fn ids_too_large_for_uint16_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut splitter = Splitter::resume(options(folder.path(), Layout::Shard, 0, 0), Progress::default()).unwrap();
    let batch = Batch { texts: b"x", text_offsets: &[0, 1], ids: &[65_536], id_offsets: &[0, 1] };
    assert!(splitter.add(&batch, 0, 1).unwrap_err().to_string().contains("too large for uint16"));
    for (text_offsets, id_offsets) in [(&[0, 2], &[0, 1]), (&[0, 1], &[0, 2]), (&[1, 0], &[0, 1]), (&[-1, 1], &[0, 1])]
    {
        assert!(Batch { texts: b"x", text_offsets, ids: &[1], id_offsets }.check().is_err());
    }
    assert!(Batch { texts: b"x", text_offsets: &[0, 1], ids: &[1], id_offsets: &[0, 1] }.check().is_ok());
}

#[test]
fn first_half_is_the_big_endian_prefix() {
    let key = text_key(b"sea");
    assert_eq!(first_half(&key), u64::from_be_bytes(key[..8].try_into().unwrap()));
    assert_ne!(text_key(b"sea"), text_key(b"see"));
}
