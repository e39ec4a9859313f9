//! Runs a stack: `up DATA_DIR PACKAGES PRESET LISTEN [--separate]`.
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = runtime::launch::intercept() {
        return code;
    }
    let args: Vec<String> = std::env::args().collect();
    let layout = model::Layout::new(PathBuf::from(&args[1]));
    let mut stack = model::Stack::new("bench.localhost".to_owned().try_into().unwrap());
    stack.listen.address = args[4].clone();
    let topology = model::plan(&stack, &layout.sockets(), args[3].parse().unwrap()).unwrap();
    let mut options = runtime::UpOptions::new(topology, layout.clone(), PathBuf::from(&args[2]));
    options.fork_server = !args.iter().any(|a| a == "--separate");
    let rt = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let code = rt.block_on(async {
        match runtime::up(options, runtime::progress::for_stderr()).await {
            Ok(running) => {
                println!("{:?}", running.started());
                running.admin_shown();
                let status = runtime::client::status(&layout).await.unwrap();
                println!("pss {:?} MiB", status.pss_bytes.map(|b| b >> 20));
                running.wait_until_stopped().await.unwrap();
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        }
    });
    rt.shutdown_timeout(std::time::Duration::from_secs(2));
    code
}
