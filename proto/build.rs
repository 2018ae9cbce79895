//! Compiles the .proto files with protox: no `protoc` is needed on the machine.

use std::path::PathBuf;

use protox::prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = [
        "drover/v1/migration_service.proto",
        "drover/v1/host_service.proto",
        "drover/agent/v1/agent_service.proto",
        "drover/agent/v1/peer_service.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("drover.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
