//! Work orders: a task in the words of a driver, for the pool that it was granted.

use federation::{Job, PoolId};

use super::model::{Executor, FileType, Input, Output};
use super::task::Submission;
use crate::driver::{Source, StageIn, StageKind, StageOut, Step, WorkOrder, WorkOwner};

impl Submission {
    /// What the driver has to do for one attempt.
    pub fn work_order(&self, job: &Job, attempt: u32, pool: PoolId) -> WorkOrder {
        let (task, shape) = (self.task(), &job.shape);
        WorkOrder {
            job: job.id,
            attempt,
            pool,
            researcher: WorkOwner { home: job.home, pseudonym: job.pseudonym, project: job.labels.project.clone() },
            gpus: shape.gpus,
            nodes: shape.nodes,
            cpu_cores: shape.cpu_cores,
            ram_gib: shape.ram_gib,
            disk_gib: shape.disk_gib,
            walltime_s: shape.walltime_s,
            executors: task.executors.iter().map(step).collect(),
            inputs: task.inputs.iter().map(stage_in).collect(),
            outputs: task.outputs.iter().map(stage_out).collect(),
            volumes: task.volumes.clone(),
            lease_until_ms: None,
        }
    }
}

fn step(executor: &Executor) -> Step {
    Step {
        image: executor.image.clone(),
        command: executor.command.clone(),
        workdir: executor.workdir.clone(),
        stdin: executor.stdin.clone(),
        stdout: executor.stdout.clone(),
        stderr: executor.stderr.clone(),
        env: executor.env.clone(),
        ignore_error: executor.ignore_error.unwrap_or(false),
    }
}

fn stage_in(input: &Input) -> StageIn {
    let source = match (&input.content, &input.url) {
        // The specification: `content` counts if both are there.
        (Some(content), _) => Source::Content(content.clone().into_bytes()),
        (None, url) => Source::Url(url.clone().unwrap_or_default()),
    };
    StageIn { path: input.path.clone(), source, kind: kind(input.file_type) }
}

fn stage_out(output: &Output) -> StageOut {
    StageOut {
        url: output.url.clone(),
        path: output.path.clone(),
        path_prefix: output.path_prefix.clone(),
        kind: kind(output.file_type),
    }
}

fn kind(file_type: Option<FileType>) -> StageKind {
    match file_type.unwrap_or_default() {
        FileType::File => StageKind::File,
        FileType::Directory => StageKind::Directory,
    }
}
