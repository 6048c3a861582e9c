#!/usr/bin/env bash
# get_apptainer.sh PREFIX: put a real Apptainer under PREFIX; then PATH=PREFIX/bin:$PATH. Needs root on a Debian machine.
#
# Debian ships Apptainer in its unstable suite only. Its binaries need a newer C library than a stable machine has, so
# they come with their own, and nothing of the machine's packages or apt configuration changes. The mirror and the
# keyring are those of the machine's apt.
set -euo pipefail

prefix=$(realpath -m "${1:?usage: get_apptainer.sh PREFIX}")
if [ -x "$prefix/bin/apptainer" ]; then exit 0; fi

# What the installation and later builds (squashfs, debootstrap) run.
missing=()
for package in patchelf squashfs-tools debootstrap; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends "${missing[@]}"
fi

release=$(. /etc/os-release && echo "$VERSION_CODENAME")
mirror=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
    awk -v release="$release" '$1 == release { print $2; exit }')
if [ -z "$mirror" ]; then
    echo "get_apptainer.sh: apt has no source for $release; check /etc/apt/sources.list" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,archives}/partial "$work"/{packages,root}
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$work/sources.list"
apt=(apt-get -qq -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$work/lists"
    -o Dir::Cache::Archives="$work/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root)
"${apt[@]}" update
(cd "$work/packages" && "${apt[@]}" download apptainer libc6 libseccomp2 libsqlite3-0)
for package in "$work"/packages/*.deb; do dpkg -x "$package" "$work/root"; done

# Lay it out beside the final name, so that an interrupted installation is not taken for a whole one.
new=$prefix.new
libraries=$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || echo x86_64-linux-gnu)
rm -rf "$new" "$prefix"
mkdir -p "$new"/{bin,etc,runtime,var/lib/apptainer/mnt/session} "$new/lib/$libraries"
cp -a "$work/root/usr/bin/apptainer" "$new/bin/"
ln -s apptainer "$new/bin/singularity"
cp -a "$work/root/etc/apptainer" "$new/etc/"
cp -a "$work/root/usr/lib/$libraries/apptainer" "$new/lib/$libraries/"
for library in "$work/root/usr/lib/$libraries"/{ld-linux-x86-64.so.2,lib{c,m,resolv,nss_files,nss_dns,seccomp,sqlite3}.so.*}; do
    cp -L "$library" "$new/runtime/"
done
for binary in "$new/bin/apptainer" "$new/lib/$libraries/apptainer/bin/starter"; do
    patchelf --set-interpreter "$prefix/runtime/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$prefix/runtime" "$binary"
done
# The starter finds its files relative to itself, and with Debian's multiarch folder that is one level too deep.
ln -s ../var "$new/lib/var"
ln -s ../etc "$new/lib/etc"

# Apptainer gives root every capability by default, and fails where the machine's root lacks some (as in a container).
sed -i 's/^root default capabilities = .*/root default capabilities = file/' "$new/etc/apptainer/apptainer.conf"
cat >"$new/etc/apptainer/capability.json" <<'JSON'
{"users": {"root": ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD", "CAP_SETFCAP",
                    "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT"]}}
JSON
mv "$new" "$prefix"
"$prefix/bin/apptainer" --version
