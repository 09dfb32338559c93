//! Are the directories that must outlive the pod really the host's? Pure, on
//! the text of `/proc/self/mountinfo`.

use std::path::Path;

/// How a directory is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// On a mount of its own.
    Mounted,
    /// In the container's own file system: lost with the container.
    Container,
    /// In an emptyDir: lost with the pod.
    EmptyDir,
}

/// How `path` is kept, by the longest mount point above it. Of two mounts at
/// one place the later one covers the earlier.
pub fn kept(mountinfo: &str, path: &Path) -> Kept {
    let mut best: Option<(usize, &str)> = None;
    for line in mountinfo.lines() {
        // Fields: id, parent, device, root within the file system, mount point, ….
        let mut fields = line.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else { continue };
        let point = unescaped(point);
        if path.starts_with(&point) && best.is_none_or(|(length, _)| point.len() >= length) {
            best = Some((point.len(), root));
        }
    }
    match best {
        None => Kept::Container,
        Some((length, _)) if length <= 1 => Kept::Container,
        Some((_, root)) if root.contains("/kubernetes.io~empty-dir/") => Kept::EmptyDir,
        Some(_) => Kept::Mounted,
    }
}

/// The kernel writes blanks, tabs, line ends and backslashes in octal.
fn unescaped(text: &str) -> String {
    ["\\040 ", "\\011\t", "\\012\n", "\\134\\"].iter().fold(text.to_owned(), |text, pair| {
        let (code, plain) = pair.split_at(4);
        text.replace(code, plain)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "\
612 501 0:45 / / rw,relatime - overlay overlay rw
613 612 0:48 / /proc rw - proc proc rw
700 612 8:1 /var/lib/weft /var/lib/weft rw - ext4 /dev/sda1 rw
701 612 0:25 /weft /run/weft rw - tmpfs tmpfs rw
702 612 8:1 /var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/cni /etc/cni/net.d rw - ext4 x rw
703 612 8:1 /opt/a /opt/with\\040blank rw - ext4 x rw
";

    #[test]
    fn mounts_are_told_from_the_container() {
        let of = |path: &str| kept(INFO, Path::new(path));
        assert_eq!(of("/var/lib/weft"), Kept::Mounted);
        assert_eq!(of("/var/lib/weft/deeper"), Kept::Mounted);
        assert_eq!(of("/var/lib/weftless"), Kept::Container);
        assert_eq!(of("/run/weft"), Kept::Mounted);
        assert_eq!(of("/etc/cni/net.d"), Kept::EmptyDir);
        assert_eq!(of("/opt/cni/bin"), Kept::Container);
        assert_eq!(of("/opt/with blank/x"), Kept::Mounted);
        assert_eq!(kept("rubbish\n\n1 2", Path::new("/x")), Kept::Container);
    }
}
