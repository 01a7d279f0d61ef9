//! The sentences that tests tell a [`World`], and the facts that they expect of it.

use federation::{
    Action, Attest, Candidate, CapacityReport, Ceiling, Command, End, JobId, JobState, NodeCount, PoolId, Reason,
    Rerank, Revision, Timestamp, due,
};

use crate::world::{HOST, POOL, World, offer, pack_of, pool, state, submit};

/// `submit a 4 on main+b by DE`: words by place, and the words after a keyword.
struct Sentence<'a>(Vec<&'a str>);

impl<'a> Sentence<'a> {
    fn after(&self, keyword: &str) -> Option<&'a str> {
        self.0.iter().position(|it| *it == keyword).map(|at| self.0[at + 1])
    }

    fn number(&self, keyword: &str, otherwise: u32) -> u32 {
        self.after(keyword).map_or(otherwise, |number| number.parse().unwrap())
    }

    fn pools(&self) -> Vec<PoolId> {
        self.after("on").unwrap_or(POOL).split('+').map(pool).collect()
    }

    /// The pools, all with the same ceiling if one is said.
    fn candidates(&self) -> Vec<Candidate> {
        let below = self.after("below").map(|percent| Ceiling::parse(percent.parse().unwrap()).unwrap());
        self.pools().into_iter().map(|pool| Candidate { pool, below }).collect()
    }
}

/// `4x8`: two numbers.
fn times(text: &str) -> Option<(u32, u32)> {
    let (nodes, gpus) = text.split_once('x')?;
    Some((nodes.parse().unwrap(), gpus.parse().unwrap()))
}

impl World {
    #[track_caller]
    pub fn say(&mut self, sentence: &str) {
        let it = Sentence(sentence.split_whitespace().collect());
        let by = it.after("by");
        let (of, command) = match it.0[0] {
            "wait" => {
                self.now = self.now.plus_s(it.0[1].parse().unwrap());
                return;
            }
            "offer" | "withdraw" | "report" => (HOST, self.about_a_pool(&it)),
            "pack" => {
                let sequence = self.registry.pack(state(it.0[1])).map_or(1, |pack| pack.sequence + 1);
                (it.0[1], Command::PublishPack(pack_of(it.0[1], sequence, &self.registry)))
            }
            // What a state has not heard of the host.
            "quiet" | "gone" => {
                let about = World::gateway(HOST);
                let heard_at = it.after("since").map(|revision| Revision(revision.parse().unwrap()));
                let heard_at = heard_at.unwrap_or(self.registry.heard_at(&about));
                (it.0[1], Command::Attest(Attest { about, heard_at, gone: it.0[0] == "gone" }))
            }
            "submit" => ("FR", self.about_a_new_job(&it)),
            "rerank" => {
                let sequence = self.registry.pack(state(HOST)).map_or(0, |pack| pack.sequence);
                let decided_on = vec![(state(HOST), it.number("decided", sequence as u32).into())];
                let nowhere = it.0.get(2) == Some(&"nowhere");
                let candidates = if nowhere { vec![] } else { it.candidates() };
                let reason = it.after("because").map(Reason::new);
                ("FR", Command::Rerank(Rerank { job: self.jobs[it.0[1]], candidates, decided_on, reason }))
            }
            verb => {
                let detail = it.0.get(2).copied().unwrap_or_default();
                return self.move_job(verb, self.jobs[it.0[1]], detail, by);
            }
        };
        self.commit(by.unwrap_or(of), vec![command]);
    }

    fn about_a_pool(&mut self, it: &Sentence) -> Command {
        let pool = it.pools()[0];
        self.sequence += 1;
        let sequence = self.sequence;
        match it.0[0] {
            "offer" => {
                let (nodes, per_node) = times(it.0[1]).unwrap_or_else(|| (1, it.0[1].parse().unwrap()));
                let mut offer = offer(pool, sequence, nodes, per_node);
                offer.model.memory_gib = it.number("memory", 80);
                offer.keeps_leases = !it.0.contains(&"leaseless");
                Command::PublishOffer(offer)
            }
            "withdraw" => Command::WithdrawOffer { pool, sequence },
            _ => {
                let counts = it.0[1].split('+').filter_map(times);
                let lendable = counts.map(|(nodes, gpus)| NodeCount { gpus, nodes }).collect();
                let at = it.after("at").map_or(self.now, |ms| Timestamp(ms.parse().unwrap()));
                Command::ReportCapacity(CapacityReport { pool, lendable, at, problem: None })
            }
        }
    }

    fn about_a_new_job(&mut self, it: &Sentence) -> Command {
        let job = JobId::new(self.jobs.len() as u64 + 1, [0; 10]);
        self.jobs.insert(it.0[1].into(), job);
        let mut submit = submit(job, it.0[2].parse().unwrap(), it.pools());
        submit.candidates = it.candidates();
        submit.shape.nodes = it.number("nodes", 0);
        submit.shape.walltime_s = it.number("for", 3_600);
        submit.shape.memory_gib_min = it.number("memory", 0);
        submit.priority = it.number("priority", 5) as u8;
        submit.restartable = !it.0.contains(&"once");
        submit.exclusive = it.0.contains(&"exclusive");
        submit.decided_on =
            it.after("decided").map(|sequence| (state(HOST), sequence.parse().unwrap())).into_iter().collect();
        submit.at = self.now;
        Command::Submit(submit)
    }

    /// A verb about a job, with the attempt that is current unless another number is said.
    #[track_caller]
    fn move_job(&mut self, verb: &str, job: JobId, detail: &str, by: Option<&str>) {
        let at = self.now;
        let known = self.registry.job(&job).unwrap();
        let (home, state) = (known.home.to_string(), known.state);
        let attempt = detail.parse().unwrap_or(known.attempt().map_or(0, |attempt| attempt.number));
        let end = |end| Command::Finish { job, attempt, end, at };
        let start = Command::Start { job, attempt, at };
        let run = Command::Run { job, attempt, at };
        let (of, commands) = match verb {
            "cancel" => (home.as_str(), vec![Command::Cancel { job, at }]),
            "start" => (HOST, vec![start]),
            "run" => (HOST, vec![run]),
            "decline" => {
                let below = detail.strip_prefix("below-").map(|it| Ceiling::parse(it.parse().unwrap()).unwrap());
                (HOST, vec![Command::Decline { job, attempt, reason: "no".into(), below, at }])
            }
            // As a host would: whatever is missing before the end, in the same batch.
            "finish" if state == JobState::Granted => (HOST, vec![start, run, end(End::Complete)]),
            "finish" if state == JobState::Starting => (HOST, vec![run, end(End::Complete)]),
            "finish" | "complete" => (HOST, vec![end(End::Complete)]),
            "fail" => (HOST, vec![end(End::ExecutorError { exit_code: 1 })]),
            "lose" => (HOST, vec![end(End::lost("node lost"))]),
            "break" => (HOST, vec![end(End::system_error("node lost"))]),
            "forbid" => (HOST, vec![end(End::NotPermitted { reason: "no".into() })]),
            "stopped" => (HOST, vec![end(End::Canceled)]),
            unknown => panic!("no sentence begins with {unknown}"),
        };
        self.commit(by.unwrap_or(of), commands);
    }

    pub fn fact(&self, subject: &str, wanted: &str) -> String {
        let main = || self.registry.offer(&pool(POOL)).map(|offer| &offer.ledger);
        let word = |at: usize| wanted.split_whitespace().nth(at).unwrap_or_default();
        match subject {
            "free" => main().unwrap().free_gpus().to_string(),
            "used" => main().unwrap().used_gpus().to_string(),
            "gone" => main().map_or("", |_| "not").into(),
            "last" => format!("{:?}", self.last)
                .split(['{', '('])
                .map(str::trim)
                .take(if word(0) == "Rejected" { 2 } else { 1 })
                .collect::<Vec<_>>()
                .join(" ")
                .trim_end_matches(')')
                .into(),
            "charged" => self.registry.usage().map(|(.., flow)| flow.gpu_seconds).sum::<u64>().to_string(),
            "why" => {
                let end = &self.registry.job(&self.jobs[word(0)]).unwrap().end;
                [word(0), &end.as_ref().map_or(String::new(), |end| format!("{end:?}"))].join(" ")
            }
            "kept" => self.registry.kept_free_for(&pool(POOL)).map_or("none".into(), |job| self.name(job)),
            "due" => {
                let actions = due(&self.registry, &World::gateway(word(0)), self.now);
                let named: Vec<_> = actions.iter().filter_map(|action| self.duty(action)).collect();
                [vec![word(0).to_owned()], named].concat().join(" ")
            }
            job => {
                let job = self.registry.job(&self.jobs[job]).unwrap();
                let place = job
                    .holding()
                    .map(|it| vec![it.pool.name.to_string(), it.grant.gpus.to_string()])
                    .unwrap_or_default();
                let stop = if job.cancel_requested && !job.state.is_final() { vec!["STOP".to_owned()] } else { vec![] };
                let words = [vec![job.state.to_string()], place, stop].concat();
                words[..wanted.split_whitespace().count().clamp(1, words.len())].join(" ")
            }
        }
    }

    fn name(&self, job: JobId) -> String {
        self.jobs.iter().find(|(_, id)| **id == job).map(|(name, _)| name.clone()).unwrap()
    }

    fn duty(&self, action: &Action) -> Option<String> {
        Some(match action {
            Action::Dispatch { job, .. } => format!("dispatch:{}", self.name(*job)),
            Action::Poll { job, .. } => format!("poll:{}", self.name(*job)),
            Action::Stop { job, .. } => format!("stop:{}", self.name(*job)),
            Action::Rerank { job } => format!("rerank:{}", self.name(*job)),
            Action::Report { pool } => format!("report:{}", pool.name),
        })
    }
}
