# Sourced by a batch script before its srun: puts the job back into the queue when its run was stopped, and did not end.
#
#   75            every rank has saved and left, or met a fault that may pass
#   above 128     a rank died of a signal: kill -9, the OOM killer, a node that went down
#   0, no verdict srun gave up without saying so, as it can when a node goes down
#
# Anything else is final, as is a verdict of the program itself. A job that was cancelled, or that SLURM has put back into
# the queue by itself, is no longer running and is left alone.
export SLURM_KILL_BAD_EXIT=1 # a rank that fails ends its step
: "${VIDTRAIN_MAX_RESTARTS:=100}"
: "${VIDTRAIN_STATE:=$SLURM_SUBMIT_DIR/outputs/.slurm}"
: "${VIDTRAIN_PATIENCE:=10}" # seconds from one try to reach the controller to the next
mkdir -p "$VIDTRAIN_STATE"
export VIDTRAIN_VERDICT="$VIDTRAIN_STATE/$SLURM_JOB_ID.verdict"
rm -f "$VIDTRAIN_VERDICT"

# A controller that has just lost a node can be late to answer: what asks it is tried a few times. The state of a job
# says whether there is anything left to do, as a request that seems to have failed may have been heard.
vidtrain_job_state() {
    local state
    for _ in 1 2 3 4 5 6; do
        state=$(scontrol --oneliner show job "$SLURM_JOB_ID" | grep -o 'JobState=[A-Z_]*' | cut -d= -f2) || true
        [ -n "$state" ] && break
        sleep "$VIDTRAIN_PATIENCE"
    done
    echo "${state:-UNKNOWN}"
}

vidtrain_requeue() {
    for _ in 1 2 3 4 5 6; do
        # in that minute SLURM ends this script; what runs after it is the next attempt, and not to be requeued
        scontrol requeue "$SLURM_JOB_ID" && sleep 60 && return
        sleep "$VIDTRAIN_PATIENCE"
        [ "$(vidtrain_job_state)" = RUNNING ] || return
    done
}

vidtrain_exit() {
    local status=$? restarts=${SLURM_RESTART_COUNT:-0} verdict=none state
    [ -e "$VIDTRAIN_VERDICT" ] && verdict=$(cat "$VIDTRAIN_VERDICT")
    rm -f "$VIDTRAIN_VERDICT"
    state=$(vidtrain_job_state)
    echo "vidtrain: status $status, verdict $verdict, job $state, restarts $restarts of $VIDTRAIN_MAX_RESTARTS" >&2
    if [ "$verdict" = none ] && [ "$state" = RUNNING ] && [ "$restarts" -lt "$VIDTRAIN_MAX_RESTARTS" ] &&
        { [ "$status" -eq 0 ] || [ "$status" -eq 75 ] || [ "$status" -gt 128 ]; }; then
        vidtrain_requeue
    fi
    # srun can call a step a success that was cut short
    [ "$status" -eq 0 ] && [ "$verdict" = none ] && status=1
    exit "$status"
}
trap vidtrain_exit EXIT
