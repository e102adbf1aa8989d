//! Rewrites the generated code in place: `cargo xtask codegen`.

fn main() -> anyhow::Result<()> {
    let root = swarm_codegen::root();
    for (path, code) in swarm_codegen::generate(&root)? {
        let target = root.join(&path);
        if std::fs::read_to_string(&target).ok().as_deref() != Some(code.as_str()) {
            std::fs::create_dir_all(target.parent().unwrap_or(&root))?;
            std::fs::write(&target, code)?;
            println!("wrote {}", path.display());
        }
    }
    Ok(())
}
