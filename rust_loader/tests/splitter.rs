//! Whatever a splitter wrote after it was last synced is forgotten by the one that goes on.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use jaxgpt_loader::format::Dtype;
use jaxgpt_loader::series::Plan;
use jaxgpt_loader::splitter::{Batch, Options, Progress, Splitter, first_half, text_key};
use jaxgpt_loader::writer::Layout;
use proptest::prelude::*;

type Document = (String, Vec<u32>);

fn options(folder: &Path, layout: Layout, val_tokens: u64, limit: u128) -> Options {
    let plan = Plan { folder: folder.into(), name: String::new(), dtype: Dtype::U16, layout, shard_tokens: 37 };
    Options { plan, end_of_text: Some(999), val_tokens, limit, clusters: None, budget: u64::MAX }
}

fn add(splitter: &mut Splitter, documents: &[Document]) {
    let (mut texts, mut ids) = (Vec::new(), Vec::new());
    let (mut text_ends, mut id_ends) = (vec![0], vec![0]);
    for (text, tokens) in documents {
        texts.extend(text.as_bytes());
        ids.extend(tokens);
        text_ends.push(texts.len() as i64);
        id_ends.push(ids.len() as i64);
    }
    let batch = Batch { texts: &texts, text_ends: &text_ends, ids: &ids, id_ends: &id_ends };
    batch.check().unwrap();
    assert_eq!(splitter.add(&batch, 0, documents.len()).unwrap(), documents.len());
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let named = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let names = fs::read_dir(folder).unwrap().map(named).filter(|name| !name.starts_with('.'));
    names.map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect()
}

fn at_once(documents: &[Document], layout: Layout, val_tokens: u64, limit: u128) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let mut splitter =
        Splitter::resume(options(folder.path(), layout, val_tokens, limit), Progress::default()).unwrap();
    add(&mut splitter, documents);
    splitter.finish().unwrap();
    files(folder.path())
}

fn documents() -> impl Strategy<Value = Vec<Document>> {
    prop::collection::vec(("[a-z ]{0,20}", prop::collection::vec(0u32..999, 0..60)), 1..40)
}

proptest! {
    /// Synced at `noted`, broken off at `lost` or in its end, and gone on with: the same files.
    #[test]
    fn going_on(
        documents in documents(), plain in any::<bool>(), val_tokens in 0u64..400, share in 0u32..=4,
        noted in 0usize..40, lost in 0usize..40, finishing in any::<bool>()
    ) {
        let layout = if plain { Layout::Plain } else { Layout::Shard };
        let limit = (u128::from(share) << 64) / 4;
        let noted = noted.min(documents.len());
        let lost = lost.clamp(noted, documents.len());
        let folder = tempfile::tempdir().unwrap();
        let asked = || options(folder.path(), layout, val_tokens, limit);
        let mut splitter = Splitter::resume(asked(), Progress::default()).unwrap();
        add(&mut splitter, &documents[..noted]);
        let progress = splitter.sync().unwrap();
        add(&mut splitter, &documents[noted..lost]);
        if finishing { drop(splitter.finish()) } else { drop(splitter) }
        let mut again = Splitter::resume(asked(), progress).unwrap();
        add(&mut again, &documents[noted..]);
        again.finish().unwrap();
        prop_assert_eq!(files(folder.path()), at_once(&documents, layout, val_tokens, limit));
    }

    /// Validation has the documents of lowest key, up to the one that reaches its size, and train all others.
    #[test]
    fn sides(documents in documents(), val_tokens in 1u64..400) {
        let found = at_once(&documents, Layout::Plain, val_tokens, u128::MAX);
        let tokens = |chosen: &dyn Fn(&Document) -> bool| -> Vec<u8> {
            let chosen = documents.iter().filter(|document| chosen(document));
            chosen.flat_map(|(_, ids)| ids.iter().chain([&999]).flat_map(|&id| (id as u16).to_le_bytes())).collect()
        };
        let mut keys: Vec<_> = documents.iter().map(|(text, ids)| (text_key(text.as_bytes()), ids.len() + 1)).collect();
        keys.sort();
        let mut held = 0;
        let last = keys.iter().find(|(_, count)| { held += count; held as u64 >= val_tokens });
        let cutoff = last.or(keys.last()).unwrap().0;
        let val = tokens(&|(text, _)| text_key(text.as_bytes()) <= cutoff);
        let train = tokens(&|(text, _)| text_key(text.as_bytes()) > cutoff);
        prop_assert_eq!(found.get("val.bin").cloned().unwrap_or_default(), val);
        prop_assert_eq!(found.get("train.bin").cloned().unwrap_or_default(), train);
    }
}

#[test]
fn ids_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut splitter = Splitter::resume(options(folder.path(), Layout::Shard, 0, 0), Progress::default()).unwrap();
    let batch = Batch { texts: b"x", text_ends: &[0, 1], ids: &[65_536], id_ends: &[0, 1] };
    assert!(splitter.add(&batch, 0, 1).unwrap_err().to_string().contains("too large for uint16"));
    for (text_ends, id_ends) in [(&[0, 2], &[0, 1]), (&[0, 1], &[0, 2]), (&[1, 0], &[0, 1]), (&[-1, 1], &[0, 1])] {
        assert!(Batch { texts: b"x", text_ends, ids: &[1], id_ends }.check().is_err());
    }
    assert!(Batch { texts: b"x", text_ends: &[0, 1], ids: &[1], id_ends: &[0, 1] }.check().is_ok());
}

#[test]
fn a_key_is_compared_by_its_first_half() {
    let key = text_key(b"sea");
    assert_eq!(first_half(&key), u64::from_be_bytes(key[..8].try_into().unwrap()));
    assert_ne!(text_key(b"sea"), text_key(b"see"));
}
