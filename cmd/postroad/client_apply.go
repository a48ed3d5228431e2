package main

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/secrets"
	"postroad/ingress/account"
)

type clientApplyCmd struct {
	Paths        []string `arg:"" name:"file" placeholder:"FILE" help:"Manifests, or directories with them: .yaml and .yml."`
	DryRun       bool     `help:"Only say what would be done."`
	Prune        bool     `help:"Remove the clients that no manifest names."`
	PruneAtMost  string   `placeholder:"N" default:"10%" help:"Refuse to remove more than so many clients, or so many percent of all. Default: 10%."`
	PasswordsDir string   `placeholder:"DIR" help:"Write the password of each new client to a file of its name there, mode 0600, instead of printing it."`
}

// applyJob is one run of client apply.
type applyJob struct {
	clientApplyCmd

	app    *app
	store  secrets.ClientStore
	counts map[string]int // by action
	failed int
}

// wanted is a manifest that makes sense.
type wanted struct {
	wish
	manifest *config.ClientManifest
}

// Run brings the clients to the state of the manifests. One that fails does not keep the others back.
func (c clientApplyCmd) Run(a *app) error {
	list, err := c.read()
	if err != nil {
		return err
	}
	most, err := parseShare(c.PruneAtMost)
	if err != nil {
		return err
	}
	store, err := a.clients()
	if err != nil {
		return err
	}
	known, listErr := store.List(a.ctx)
	if errors.Is(listErr, fs.ErrNotExist) && known == nil {
		listErr = nil // nobody has added one
	}
	if errors.Is(listErr, account.ErrUnavailable) {
		return listErr
	}
	j := &applyJob{clientApplyCmd: c, app: a, store: store, counts: make(map[string]int)}
	unnamed := unnamedBy(list, known)
	if limit := most(len(known)); c.Prune && len(unnamed) > limit {
		return fmt.Errorf("no manifest names %s: --prune would remove %d of %d clients, and may remove %d: "+
			"are all manifests there? --prune-at-most %d allows it. Nothing was changed", someOf(unnamed), len(unnamed), len(known), limit, len(unnamed))
	}
	err = j.all(list, unnamed)
	if listErr != nil { // records that cannot be read
		a.tell("postroad: %v\n", listErr)
		if err == nil {
			err = errSaid
		}
	}
	return err
}

// all does the work and says what came of it.
func (j *applyJob) all(list []wanted, unnamed []string) error {
	for _, w := range list {
		if err := j.app.ctx.Err(); err != nil {
			return fmt.Errorf("stopped before client %s: %w", w.name, err)
		}
		if err := j.ensure(w); err != nil {
			return err
		}
	}
	if j.Prune {
		for _, name := range unnamed {
			if err := j.app.ctx.Err(); err != nil {
				return fmt.Errorf("stopped before the removal of client %s: %w", name, err)
			}
			if err := j.remove(name); err != nil {
				return err
			}
		}
	} else if len(unnamed) > 0 && !j.app.flags.JSON {
		j.app.tell("no manifest names %s: --prune removes what no manifest names\n", someOf(unnamed))
	}
	if !j.app.flags.JSON {
		would := ""
		if j.DryRun {
			would = "would be "
		}
		j.app.tell("%s%d created, %d updated, %d removed, %d unchanged\n", would, j.counts["created"], j.counts["updated"], j.counts["removed"], j.counts["unchanged"])
	}
	if j.failed > 0 {
		return errSaid
	}
	return nil
}

// ensure brings one client to its state. The error is one that ends it all: a password that cannot be handed over.
func (j *applyJob) ensure(w wanted) error {
	password := ""
	if !w.manifest.NoPassword {
		password = account.GeneratePassword()
	}
	var r *clientReport
	var file *passwordFile
	defer func() { file.drop() }()
	err := changeClient(j.app, j.store, w.name, j.DryRun, func(known *account.Client) (*account.Client, error) {
		r = &clientReport{Client: w.name, DryRun: j.DryRun, Action: "unchanged"}
		if known != nil {
			if w.bring(known, r); len(r.Changes) == 0 {
				return nil, nil
			}
			r.Action = "updated"
			return known, nil
		}
		fresh, err := w.create(password, r)
		if err != nil {
			return nil, err
		}
		w.bring(fresh, r)
		if r.Password != "" && j.PasswordsDir != "" && file == nil {
			if file, err = newPasswordFile(j.PasswordsDir, w.name, password); err != nil {
				return nil, err
			}
		}
		return fresh, nil
	})
	if err == nil && r.Action == "created" && file != nil {
		r.Password = ""
		r.note("its password is in %s", file.path)
		err = file.keep()
	}
	if errors.Is(err, errUnclear) && r.Password != "" {
		return j.reportUnclear(r, file, err)
	}
	if err != nil {
		j.fail(w.name, err)
		return nil
	}
	return j.report(r)
}

// reportUnclear hands over a password that may be in force: nobody else knows it.
func (j *applyJob) reportUnclear(r *clientReport, file *passwordFile, err error) error {
	j.fail(r.Client, err)
	r.Unclear, r.Changes, r.Notes = true, nil, nil
	place := "on standard output"
	if file != nil {
		place = "in " + file.leave()
		r.Password = ""
	}
	r.note("%s", uncertain(r.Client, r.PasswordID, place))
	return j.print(r)
}

func (j *applyJob) fail(name string, err error) {
	j.failed++
	j.app.tell("client %s: %v\n", name, err)
}

// remove removes a client that no manifest names.
func (j *applyJob) remove(name string) error {
	r := &clientReport{Client: name, Action: "removed", DryRun: j.DryRun}
	if !j.DryRun {
		err := j.store.Remove(j.app.ctx, name)
		if errors.Is(err, account.ErrUnknown) {
			r.Action, err = "unchanged", nil // somebody else has
		}
		if err != nil {
			j.fail(name, err)
			return nil
		}
		j.app.notify(topicClients, name)
	}
	return j.report(r)
}

// report prints what was done; what stays as it is is only counted. Passwords are on standard output, each behind its client.
func (j *applyJob) report(r *clientReport) error {
	j.counts[r.Action]++
	return j.print(r)
}

func (j *applyJob) print(r *clientReport) error {
	if j.app.flags.JSON {
		return j.app.print(r)
	}
	if r.Action == "unchanged" && len(r.Notes) == 0 {
		return nil
	}
	j.app.tellReport(r)
	if r.Password == "" {
		return nil
	}
	if _, err := fmt.Fprintf(j.app.out, "%s %s\n", r.Client, r.Password); err != nil {
		return fmt.Errorf("print the password, which is in force now and seen by nobody (postroad client passwd %s makes another): %w", r.Client, err)
	}
	return nil
}

// bring gives a client all that the manifest says of it. Passwords of one that is there already are not its business, and a client that was
// disabled by hand is enabled only by a manifest that says so.
func (w wanted) bring(c *account.Client, r *clientReport) {
	w.apply(c, r)
	if w.class == "" && c.Class != "" {
		r.change("class: none, was %s", c.Class)
		c.Class = ""
	}
	switch disabled := w.manifest.Disabled; {
	case disabled == c.Disabled:
	case !disabled && !w.manifest.Says("disabled"):
		r.note("it is disabled, of which the manifest says nothing: postroad client enable %s, or disabled: false", w.name)
	default:
		c.Disabled = disabled
		state := map[bool]string{true: "disabled", false: "enabled"}
		r.change("%s, was %s", state[disabled], state[!disabled])
	}
}

// read reads the manifests, and finds everything that is wrong in them.
func (c clientApplyCmd) read() ([]wanted, error) {
	manifests, err := config.LoadClientManifests(c.Paths)
	if err != nil {
		if _, ok := errors.AsType[config.Errors](err); !ok {
			err = usage("%w", err)
		}
		return nil, err
	}
	if len(manifests) == 0 {
		return nil, usage("there is no manifest in %s: nothing to do", strings.Join(c.Paths, ", "))
	}
	var list []wanted
	var faults config.Errors
	first := make(map[string]*config.ClientManifest)
	for i := range manifests {
		m := &manifests[i]
		w := wanted{manifest: m}
		w.read(&faults)
		if other := first[w.name]; other != nil && w.name != "" {
			faults = append(faults, m.Fault("name", "%s is named in %s already: leave one", w.name, other.Where()))
		}
		first[w.name] = m
		list = append(list, w)
	}
	if len(faults) > 0 {
		return nil, faults
	}
	slices.SortFunc(list, func(a, b wanted) int { return strings.Compare(a.name, b.name) })
	return list, nil
}

// read makes the wish out of the manifest.
func (w *wanted) read(faults *config.Errors) {
	m := w.manifest
	name, ok := account.CleanName(m.Name)
	if !ok {
		*faults = append(*faults, m.Fault("name", "%q is no name of a client: want letters, digits, and . - _ + @ between them", m.Name))
	}
	w.name, w.class = name, m.Class
	if err := account.CheckClass(m.Class); err != nil {
		*faults = append(*faults, m.Fault("class", "%s", err))
	}
	w.networks = readManifestList(m, "networks", m.Networks, account.ParseNetwork, faults)
	w.senders = readManifestList(m, "senders", m.Senders, account.ParseSender, faults)
	w.certificates = readManifestList(m, "certificates", m.Certificates, account.ParseCertificate, faults)
}

// readManifestList reads a list, which is never nil: what is not given is empty.
func readManifestList[T comparable](m *config.ClientManifest, setting string, values []string, parse func(string) (T, error), faults *config.Errors) []T {
	list := []T{}
	for i, text := range values {
		at := fmt.Sprintf("%s[%d]", setting, i)
		value, err := parse(text)
		switch {
		case err != nil:
			*faults = append(*faults, m.Fault(at, "%s", err))
		case slices.Contains(list, value):
			*faults = append(*faults, m.Fault(at, "%q stands there twice: remove one", text))
		default:
			list = append(list, value)
		}
	}
	return list
}

// unnamedBy are the clients that no manifest names.
func unnamedBy(list []wanted, known []*account.Client) []string {
	named := make(map[string]bool, len(list))
	for _, w := range list {
		named[w.name] = true
	}
	var names []string
	for _, c := range known {
		if !named[c.Name] {
			names = append(names, c.Name)
		}
	}
	return names
}

// parseShare reads a number, or a share of all such as 10%.
func parseShare(text string) (func(all int) int, error) {
	digits, isShare := strings.CutSuffix(text, "%")
	n, err := strconv.Atoi(digits)
	if err != nil || n < 0 || isShare && n > 100 {
		return nil, usage("--prune-at-most %q: want a number of clients, or a share such as 10%%", text)
	}
	return func(all int) int {
		if isShare {
			return all * n / 100
		}
		return n
	}, nil
}

// someOf lists names, the first ones when there are many.
func someOf(names []string) string {
	const most = 20
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
