//! The copy of the tree that bugs are put into.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A copy of what git knows of the tree, and where it is built.
pub struct Tree {
    /// Its top.
    pub top: PathBuf,
    /// Cargo's directory for it.
    pub target: PathBuf,
}

impl Tree {
    /// Brings the copy up to date; files that are the same keep their times, or all would be built again. One that is left
    /// from a run that was ended in the middle of a mutant has its bug taken out by this.
    pub fn of_this() -> Result<Tree> {
        let tree = Tree { top: std::path::absolute("build/mutants/tree")?, target: PathBuf::new() };
        let tree = Tree { target: std::path::absolute("build/mutants/target")?, ..tree };
        let listed = Command::new("git").args(["ls-files", "-z"]).output()?;
        ensure!(listed.status.success(), "git ls-files failed");
        for name in String::from_utf8(listed.stdout)?.split('\0').filter(|name| !name.is_empty()) {
            let (from, to) = (Path::new(name), tree.top.join(name));
            let Ok(bytes) = fs::read(from) else { continue };
            if fs::read(&to).ok().as_ref() != Some(&bytes) {
                fs::create_dir_all(to.parent().context("a file has a directory")?)?;
                fs::write(&to, bytes)?;
            }
        }
        Ok(tree)
    }

    /// Does something while a file has another text.
    pub fn with<T>(
        &self,
        file: &str,
        change: impl FnOnce(&str) -> Result<String>,
        then: impl FnOnce() -> T,
    ) -> Result<T> {
        let path = self.top.join(file);
        let text = fs::read_to_string(&path).with_context(|| file.to_owned())?;
        fs::write(&path, change(&text)?)?;
        let result = then();
        fs::write(&path, text)?;
        Ok(result)
    }
}
