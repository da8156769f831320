"""From a file on disk to a uint8 batch.

manifest.py            records and class names
class_names.py         one spelling for each class
columns.py             how millions of them lie in memory
manifest_format.py     the file of a manifest, mapped into memory
manifest_files.py      what a source found, kept for all runs
manifest_checks.py     what no dataset may be
splitting.py           train, val and test; groups kept whole
short_videos.py        those that a protocol cannot be used on
filters.py             training videos that are too short, too long, too large
sampling.py            which frames make a clip (pure functions)
reference_sampling.py  V-JEPA 2's way to choose them
temporal.py            cuts by time; random speed and direction
clip_policies.py       short videos; frames in another order
orientation.py         how a coded picture is turned and mirrored to be shown
pixel_bounds.py        how large a picture may be
video.py               what is known of a video
probing.py             finding it out, once per file
index.py               keeping it, for all workers and runs
frame_times.py         when each frame is shown, also where a file does not say so
verifying.py           trying out where decoding can start, and what can be left out
bitstream.py           where in a file decoding can start, and what can be left out
h264.py                fields and frame numbers of H.264's packets
av1.py                 what can be left out of AV1's
bits.py                reading headers bit by bit
packets.py             decoding from byte ranges, without a container
ffmpeg_log.py          what FFmpeg says in its log only
damage.py              frames that the decoder made up
decoding.py            frame-exact pixels of the views that are wanted
conversion.py          crop, scale, convert and turn a frame in one pass
gathers.py             how fast swscale shrinks on this processor
image_folders.py       a folder of images read as a video
dataset.py             from a sample's key to uint8 clips; batches
samplers.py            which samples a step reads
loaders.py             batches, read ahead
workers.py             processes that may crash, hang or be killed
transfer.py            tensors from one process to another
allocation.py          memory that a worker frees stays with it
watchdog.py            the time limit of a file
quarantine.py          files that are not tried again
guarded.py             any function on many files, each guarded
split_records.py       what a split held at some time, in some bytes a video
split_changes.py       what differs in it now, by name
digests.py             what the files of a split hold, as one hash
reencode.py            one video to one prepared file
prepared.py            a prepared copy of a dataset
balance.py             how often each class is drawn
audit/                 what is wrong with a dataset
video_paths.py         which videos are meant by files, folders, patterns and listings
windows.py             videos of any length, whole or in windows
video_writer.py        all frames of a video, and writing a new one
augment/               geometry while decoding; the rest batched on the device
sources/               what gives manifests: one file a source
"""
