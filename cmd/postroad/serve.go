package main

import (
	"fmt"
	"log/slog"
	"strings"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/daemon"
	"postroad/cmd/internal/telemetry"
)

type serveCmd struct {
	Roles             []string `placeholder:"ROLE,…" help:"Roles of this process: queue, ops, signer, delivery, ingress. Default: the configuration's."`
	RecreateConsumers bool     `help:"After an incident: make a lost consumer of the queue anew. All that its stream ever held is handed out again, so mail may be sent twice."`
}

// Run serves until a signal comes.
func (s serveCmd) Run(a *app) error {
	c, file, err := a.load()
	if err != nil {
		return err
	}
	if len(s.Roles) > 0 {
		if err := setRoles(c, s.Roles); err != nil {
			return err
		}
	}
	if err := c.CheckFiles(); err != nil {
		return err
	}
	o := logOptions(c.Log)
	log := telemetry.NewLogger(a.err, o)
	if file == "" {
		log.Info("no configuration file: every setting has its default", "data_dir", c.DataDir, "looked_for", defaultFile)
	} else {
		log.Info("configuration read", "file", file)
	}
	err = daemon.Run(a.ctx, daemon.Options{Config: c, Logger: log, Version: version(), RecreateConsumers: s.RecreateConsumers})
	if err != nil && !o.Text(a.err) {
		log.Error("cannot go on", "err", err)
		return fmt.Errorf("%w: %w", errSaid, err)
	}
	return err
}

// setRoles puts the roles of the command line in place of the configuration's.
func setRoles(c *config.Config, names []string) error {
	known := make(map[string]config.Role)
	for _, r := range config.AllRoles() {
		known[string(r)] = r
	}
	c.Roles = nil
	for _, name := range names {
		r, ok := known[strings.TrimSpace(name)]
		if !ok {
			return usage("there is no role %q: choose from queue, ops, signer, delivery, ingress", name)
		}
		c.Roles = append(c.Roles, r)
	}
	if err := c.Check(); err != nil {
		return usage("with --roles %s: %w", strings.Join(names, ","), err)
	}
	return nil
}

// logOptions are those of the configuration.
func logOptions(l config.Log) telemetry.LogOptions {
	levels := map[config.LogLevel]slog.Level{
		config.LevelDebug: slog.LevelDebug, config.LevelInfo: slog.LevelInfo, config.LevelWarn: slog.LevelWarn, config.LevelError: slog.LevelError,
	}
	formats := map[config.LogFormat]telemetry.Format{
		config.FormatAuto: telemetry.FormatAuto, config.FormatText: telemetry.FormatText, config.FormatJSON: telemetry.FormatJSON,
	}
	return telemetry.LogOptions{Level: levels[l.Level], Format: formats[l.Format]}
}
