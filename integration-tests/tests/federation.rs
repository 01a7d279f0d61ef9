//! Whole federations in real processes.

mod federation {
    mod bad_input;
    mod changes;
    mod clients;
    mod crashes;
    mod descriptors;
    mod environment;
    mod floods;
    mod hanging;
    mod house;
    mod idle;
    mod kills;
    mod laptop;
    mod linearizability;
    mod links;
    mod local_driver;
    mod nginx;
    mod overload;
    mod partitions;
    mod pauses;
    mod peers;
    mod privacy;
    mod reads;
    mod revocation;
    mod rolling;
    mod rotation;
    mod silence;
    mod slow;
    mod slurm;
    mod stories;
    mod strangers;
    mod tes;
    mod tokens;
}
