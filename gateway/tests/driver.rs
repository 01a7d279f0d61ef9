//! The local driver on real processes: what runs, how it is stopped, what survives, and what stays outside.

mod driver {
    mod bench;
    mod limits;
    mod running;
    mod staging;
    mod stopping;
    mod surviving;
    mod transfers;
}
