# Shared by the checks that run programs which cannot be installed beside others, mail servers say: source it after lib.sh.

# cage NAME PACKAGE [SUITE] puts a package into the directory $work/NAME with what its programs need, for chroot: nothing of it is installed.
# With a suite it is that of Debian's archive, which need not be among the sources of this machine.
cage() {
	local dir=$work/$1 package=$2 program libraries=() options=()
	mkdir -p "$dir"/{deb,dev,etc,tmp,root}
	if [ $# -gt 2 ]; then
		mkdir -p "$work/apt-$3"/{lists,cache/archives}/partial
		printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian %s main\n' "$3" >"$work/apt-$3/sources"
		options=(-o "Dir::Etc::sourcelist=$work/apt-$3/sources" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/apt-$3/lists" -o "Dir::Cache=$work/apt-$3/cache")
	fi
	if ! (cd "$dir/deb" && { apt "${options[@]}" download "$package" || { apt "${options[@]}" update && apt "${options[@]}" download "$package"; }; }) >"$work/apt.log" 2>&1; then
		die "apt-get cannot download $package"
	fi
	read -ra libraries <<<"$(dpkg -f "$dir"/deb/*.deb Depends | tr ',' '\n' | sed -n 's/^ *\(lib[^ ]*\).*/\1/p' | tr '\n' ' ')"
	need "${libraries[@]}"
	dpkg -x "$dir"/deb/*.deb "$dir"
	rm -r "$dir/deb"
	# The dynamic linker looks in /lib and /usr/lib; in a cage there is only one directory of the two.
	for program in $(find "$dir" -type f -perm /111) /usr/lib/*-linux-gnu/libnss_files.so.2; do
		ldd "$program" 2>/dev/null || true
	done | sed -n 's/^[^/]*\(\/[^ ]*\) (0x.*/\1/p' | sort -u >"$dir/etc/libraries"
	while read -r program; do
		mkdir -p "$dir${program%/*}"
		cp -L "$program" "$dir$program"
	done <"$dir/etc/libraries"
	cp /etc/hosts "$dir/etc/"
	printf 'hosts: files\npasswd: files\ngroup: files\n' >"$dir/etc/nsswitch.conf"
	mknod -m 666 "$dir/dev/null" c 1 3
}
