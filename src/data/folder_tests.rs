use super::*;

fn dir(files: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        let path = dir.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "{\"prompt\": \"a\"}").unwrap();
    }
    dir
}

fn told(files: &[&str]) -> String {
    let dir = dir(files);
    let within = |files: Vec<PathBuf>| {
        let name = |f: PathBuf| f.strip_prefix(dir.path()).unwrap().display().to_string();
        files.into_iter().map(name).collect::<Vec<_>>().join(" ")
    };
    match sets(dir.path()) {
        Ok((train, held_out)) => format!("{} | {}", within(train), within(held_out)),
        Err(e) => e.to_string().replace(&dir.path().display().to_string(), "D"),
    }
}

#[test]
fn splits_are_found_by_their_names() {
    for (files, want) in [
        (&["train.json", "eval.json", "README.md"][..], "train.json | eval.json"),
        (
            &[
                "data/train-00001-of-00002.jsonl",
                "data/train-00000-of-00002.jsonl",
                "data/test-00000-of-00001.jsonl",
            ],
            "data/train-00000-of-00002.jsonl data/train-00001-of-00002.jsonl | \
             data/test-00000-of-00001.jsonl",
        ),
        (&["train_prefs.csv", "validation_prefs.csv"], "train_prefs.csv | validation_prefs.csv"),
        // "training" is another word, and the only file is the set.
        (&["all.jsonl", "dataset_info.json"], "all.jsonl | "),
        (&["train.jsonl", "train.jsonl.gz"], "train.jsonl | "),
        // The same rows before they were converted.
        (&["train.jsonl", "data/train-00000-of-00002.parquet", "train.csv"], "train.jsonl | "),
        (&["all.jsonl", "all.parquet"], "all.jsonl | "),
        // Numbered parts are one set.
        (
            &["train_1.jsonl", "train_2.jsonl", "test.json"],
            "train_1.jsonl train_2.jsonl | test.json",
        ),
        (
            &["train-00000-of-00002-8b42f1.jsonl", "train-00001-of-00002-77c0aa.jsonl"],
            "train-00000-of-00002-8b42f1.jsonl train-00001-of-00002-77c0aa.jsonl | ",
        ),
    ] {
        assert_eq!(told(files), want);
    }
}

#[test]
fn files_that_would_be_left_out_are_named() {
    let formats = |a: &str, b: &str| {
        format!(
            "D holds training rows in two formats, {a} and {b}, whose names differ; name the \
             files that are meant, one by one: --data-path FILE FILE"
        )
    };
    let unread = |what: &str, a: &str, b: &str| {
        format!(
            "D holds {what} in two formats, {a} and {b}, whose names differ; the second is not \
             read: convert it to JSON lines, or name the files that are meant: --data-path FILE"
        )
    };
    let kinds = |what: &str, names: &str, first: &str| {
        format!(
            "D holds {what} of several kinds, {names}, which may be the same rows in other \
             forms; name the files that are meant, one by one: --data-path D/{first}"
        )
    };
    let twice = |a: &str, b: &str| {
        format!(
            "D holds {a} and {b}, which may be the same rows; remove one, or name the files \
             that are meant: --data-path D/{a}"
        )
    };
    for (files, want) in [
        (&["train_1.jsonl", "train_2.csv"][..], formats("train_1.jsonl", "train_2.csv")),
        (
            &["train.jsonl", "train-00001.parquet"],
            unread("training rows", "train.jsonl", "train-00001.parquet"),
        ),
        (
            &["train.jsonl", "train_b.jsonl.gz"],
            unread("training rows", "train.jsonl", "train_b.jsonl.gz"),
        ),
        (&["all.jsonl", "more.parquet"], unread("rows", "all.jsonl", "more.parquet")),
        (
            &["train_gen-00000-of-00001.jsonl", "train_sft-00000-of-00001.jsonl"],
            kinds("training rows", "train_gen, train_sft", "train_gen-00000-of-00001.jsonl"),
        ),
        (
            &["train.jsonl", "test_gen.jsonl", "test_sft.jsonl"],
            kinds("held-out rows", "test_gen, test_sft", "test_gen.jsonl"),
        ),
        (
            &["train_v1.jsonl", "train_v2.jsonl"],
            kinds("training rows", "train_v1, train_v2", "train_v1.jsonl"),
        ),
        (
            &["train-00000-of-00001.jsonl", "train.jsonl"],
            twice("train-00000-of-00001.jsonl", "train.jsonl"),
        ),
        (&["data/train.jsonl", "train.jsonl"], twice("data/train.jsonl", "train.jsonl")),
        (
            &["train-00000-of-00001.jsonl", "train-00000-of-00002.jsonl"],
            twice("train-00000-of-00001.jsonl", "train-00000-of-00002.jsonl"),
        ),
        (
            &["train.jsonl", "test-00000-of-00001.parquet"],
            "D holds test-00000-of-00001.parquet, held-out rows in a format that Duplex does \
             not read; convert it to JSON lines, or name the training files alone: --data-path \
             D/train.jsonl"
                .to_string(),
        ),
    ] {
        assert_eq!(told(files), want);
    }
}

#[test]
fn files_without_a_split_are_told_of() {
    let dir = dir(&["train.jsonl", "test.jsonl", "extra.jsonl", "config.json", "a.md"]);
    let (train, held_out) = sets(dir.path()).unwrap();
    let want =
        format!("extra.jsonl of {} is not read: the name tells no split", dir.path().display());
    let used = [train, held_out].concat();
    assert_eq!(unread(dir.path(), &used).unwrap(), Some(want));
    std::fs::remove_file(dir.path().join("extra.jsonl")).unwrap();
    assert_eq!(unread(dir.path(), &used).unwrap(), None);
}

#[test]
fn a_directory_without_training_files_is_named_for_what_it_holds() {
    for (files, want) in [
        (
            &["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"][..],
            "D holds data/train-00000-of-00002.parquet and 1 more, which Duplex does not read; \
             convert it in Python: datasets.load_dataset(DIRECTORY, \
             split=\"train\").to_json(\"train.jsonl\")",
        ),
        (
            &["data-00000-of-00001.arrow", "state.json", "dataset_info.json"],
            "D holds data-00000-of-00001.arrow, which Duplex does not read; convert it in \
             Python: datasets.load_from_disk(DIRECTORY).to_json(\"train.jsonl\")",
        ),
        (&["README.md"], "D holds no file of rows: no .json, .jsonl, .csv or .tsv; name a file"),
        (
            &["a.json", "b.json"],
            "D holds a.json, b.json, but no file whose name says that it is the training split \
             (train.jsonl, train-00000-of-00002.jsonl); name a file",
        ),
        (
            &["test.jsonl"],
            "D holds test.jsonl, but no file whose name says that it is the training split \
             (train.jsonl, train-00000-of-00002.jsonl); name a file",
        ),
        (
            &["train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"],
            "D lacks shard 1 of 3 beside train-00000-of-00003.jsonl; download it again",
        ),
    ] {
        assert_eq!(told(files), want);
    }
}
