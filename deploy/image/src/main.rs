//! Writes the image: `make image`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use weft_image::{Image, Labels, Program, docker, oci};

/// The entry point first.
const PROGRAMS: [&str; 2] = ["agent", "weft"];

const USAGE: &str =
    "usage: weft-image --bin-dir DIR --out-dir DIR [--name NAME:TAG] [--max-bytes N]

Writes weft-oci.tar and weft-docker.tar into --out-dir, with the static programs
agent and weft from --bin-dir. Fails if the unpacked image is larger than --max-bytes.
SOURCE_DATE_EPOCH is the time the image carries; without it, 1970.";

struct Options {
    bin_dir: PathBuf,
    out_dir: PathBuf,
    reference: String,
    max_bytes: Option<usize>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "-h" || a == "--help") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match options(&arguments).and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn options(arguments: &[String]) -> Result<Options> {
    let (mut bin_dir, mut out_dir, mut max_bytes) = (None, None, None);
    let mut reference = format!("localhost/weft:{}", env!("CARGO_PKG_VERSION"));
    let mut arguments = arguments.iter();
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--bin-dir" => bin_dir = Some(PathBuf::from(value()?)),
            "--out-dir" => out_dir = Some(PathBuf::from(value()?)),
            "--name" => value()?.clone_into(&mut reference),
            "--max-bytes" => {
                let text = value()?;
                let number = text.parse();
                max_bytes = Some(number.with_context(|| format!("--max-bytes {text}: no number"))?);
            }
            _ => bail!("unknown argument {flag}\n{USAGE}"),
        }
    }
    let need =
        |dir: Option<PathBuf>, flag| dir.with_context(|| format!("{flag} is missing\n{USAGE}"));
    Ok(Options {
        bin_dir: need(bin_dir, "--bin-dir")?,
        out_dir: need(out_dir, "--out-dir")?,
        reference,
        max_bytes,
    })
}

fn run(options: &Options) -> Result<()> {
    let mut programs = Vec::new();
    for name in PROGRAMS {
        let path = options.bin_dir.join(name);
        let bytes = std::fs::read(&path)
            .with_context(|| format!("cannot read {}; build it first", path.display()))?;
        programs.push(Program { name: name.to_owned(), bytes });
    }
    let labels = Labels {
        reference: options.reference.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        created: source_date(std::env::var("SOURCE_DATE_EPOCH").ok().as_deref())?,
    };
    let image = Image::build(&programs, &labels)?;
    if let Some(max) = options.max_bytes {
        ensure!(
            image.unpacked() <= max,
            "the image is {} bytes, more than {max}: see what grew with `cargo bloat --crates`",
            image.unpacked()
        );
    }
    std::fs::create_dir_all(&options.out_dir)
        .with_context(|| format!("cannot create {}", options.out_dir.display()))?;
    for (name, bytes) in [("weft-oci.tar", oci(&image)?), ("weft-docker.tar", docker(&image)?)] {
        write(&options.out_dir.join(name), &bytes)?;
    }
    for program in &programs {
        println!("{:>10} bytes  {}", program.bytes.len(), program.name);
    }
    println!("{:>10} bytes  unpacked, {} compressed", image.unpacked(), image.packed());
    println!("{} {}", options.reference, image.id());
    Ok(())
}

fn source_date(text: Option<&str>) -> Result<u64> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(0) };
    text.parse().with_context(|| {
        format!("SOURCE_DATE_EPOCH=`{text}` is no number of seconds; for example 1767225600")
    })
}

/// There is the old archive or the new one, never half of one.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, bytes)
        .and_then(|()| std::fs::rename(&fresh, path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("{:>10} bytes  {}", bytes.len(), path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options> {
        options(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn arguments() {
        let all = parse("--bin-dir a --out-dir b --name r/weft:2 --max-bytes 7").unwrap();
        assert_eq!((all.bin_dir, all.out_dir), ("a".into(), "b".into()));
        assert_eq!((all.reference.as_str(), all.max_bytes), ("r/weft:2", Some(7)));
        for (bad, word) in [
            ("", "--bin-dir is missing"),
            ("--bin-dir", "needs a value"),
            ("--bin-dir a --out-dir b --max-bytes x", "no number"),
            ("--what", "unknown argument --what"),
        ] {
            let error = format!("{:#}", parse(bad).err().unwrap());
            assert!(error.contains(word), "{bad}: {error}");
        }
    }

    #[test]
    fn dates() {
        assert_eq!(source_date(None).unwrap(), 0);
        assert_eq!(source_date(Some("17")).unwrap(), 17);
        assert!(source_date(Some("yesterday")).unwrap_err().to_string().contains("for example"));
    }
}
