//! Whole federations in real processes.

mod federation {
    mod bad_input;
    mod changes;
    mod clients;
    mod crashes;
    mod house;
    mod laptop;
    mod local_driver;
    mod peers;
    mod privacy;
    mod reads;
    mod slurm;
    mod stories;
    mod tes;
    mod tokens;
}
