package main

import (
	"runtime"
	"runtime/debug"
)

// release is the version of the next release.
const release = "0.1.0-dev"

// version is the release with the revision that it was built from, when that is known.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return release
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return release + "+" + s.Value[:12]
		}
	}
	return release
}

type versionCmd struct{}

// Run prints the version.
func (versionCmd) Run(a *app) error {
	if a.flags.JSON {
		return a.print(map[string]string{"version": version(), "go": runtime.Version()})
	}
	a.say("postroad %s (%s)\n", version(), runtime.Version())
	return nil
}
