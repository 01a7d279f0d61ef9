//! Whole federations in real processes.

mod federation {
    mod bad_input;
    mod changes;
    mod clients;
    mod crashes;
    mod environment;
    mod house;
    mod kills;
    mod laptop;
    mod linearizability;
    mod links;
    mod local_driver;
    mod partitions;
    mod pauses;
    mod peers;
    mod privacy;
    mod reads;
    mod rolling;
    mod silence;
    mod slurm;
    mod stories;
    mod tes;
    mod tokens;
}
