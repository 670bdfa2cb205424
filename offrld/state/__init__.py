"""The daemon's state folder: the only description of its layout, shared by daemon, worker, engine and in-process code.

    STATE_DIR/
        offrld.toml               settings of the daemon                       `folder`
        queue.sqlite, audit.log   jobs and datasets; who changed what
        run/                      socket and lock of the running daemon
        keys/                     keys of the daemon and its clients           `offrl.keys`
        datasets/NAME/            a store, with the job that made it           `origin`
        uploads/UPLOAD/           files of a client, for an import or a policy
        jobs/JOB/                 run folder of a job                          `run_folder`
            seed-S/metrics/       CSV files and TensorBoard events             `metric_files`
            taken/                checkpoints inherited from other jobs        `inherited`
        cache/                    compiled code, packed downloads, frozen backups

Nothing here imports torch: the daemon uses it.
"""
